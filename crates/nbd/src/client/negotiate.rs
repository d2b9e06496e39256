//! The client's side of the handshake.

use std::io::IoSlice;

use super::{BASE_ALLOCATION, ConnectParams};
use crate::codec::{
    BlockSizes, ClientFlags, ContextReply, ContextRequest, ExportFlags, ExportRequest, Greeting,
    Info, InfoKind, MAX_OPTION_LEN, MAX_PAYLOAD_LEN, OptionHeader, OptionKind, OptionReplyHeader,
    OptionReplyKind, in_memory, on_wire,
};
use crate::error::{Error, Fault, Violation};
use crate::wire::Wire;

/// More answers to one option than any server sends.
const MAX_REPLIES: usize = 1024;

/// What the handshake has found out.
pub(super) struct Negotiated {
    pub(super) size: u64,
    pub(super) flags: ExportFlags,
    pub(super) sizes: BlockSizes,
    pub(super) structured: bool,
    contexts: Vec<ContextReply>,
}

impl Negotiated {
    /// Returns the server's number for a metadata context.
    pub(super) fn context(&self, name: &str) -> Option<u32> {
        self.contexts.iter().find(|context| context.name == name).map(|context| context.id)
    }
}

/// What an option was answered with, before its acknowledgement.
type Answers = Vec<(OptionReplyKind, Vec<u8>)>;

/// How an option ended.
enum Answer {
    Acknowledged(Answers),
    Refused { reply: OptionReplyKind, message: String },
}

/// Greets the server, asks for structured replies and the metadata contexts, and
/// enters the transmission phase.
pub(super) fn negotiate(wire: &mut Wire, params: &ConnectParams) -> Result<Negotiated, Error> {
    let fault = |fault: Fault| fault.in_handshake(&params.export);
    greet(wire).map_err(fault)?;
    let structured = ask(wire, OptionKind::StructuredReply, &[]).map_err(fault)?;
    let structured = matches!(structured, Answer::Acknowledged(_));
    let contexts = if structured { choose_contexts(wire, params)? } else { Vec::new() };
    let facts = answers(wire, params, OptionKind::Go, &{
        let infos = vec![InfoKind::BlockSize];
        ExportRequest { name: params.export.clone(), infos }.encode()
    })?;
    let (size, flags, sizes) = read_facts(facts).map_err(fault)?;
    Ok(Negotiated { size, flags, sizes, structured, contexts })
}

fn greet(wire: &mut Wire) -> Result<(), Fault> {
    let greeting = Greeting::decode(&wire.receive_array::<{ Greeting::LEN }>()?)?;
    let offered = greeting.client_flags();
    if !offered.has(ClientFlags::FIXED_NEWSTYLE) {
        return Err(Violation::NotFixedNewstyle.into());
    }
    let wanted = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
    let answer = ClientFlags(offered.0 & wanted.0);
    Ok(wire.send(&mut [IoSlice::new(&answer.encode())])?)
}

fn choose_contexts(wire: &mut Wire, params: &ConnectParams) -> Result<Vec<ContextReply>, Error> {
    let own = std::iter::once(BASE_ALLOCATION.to_owned());
    let queries = own.chain(params.contexts.iter().cloned()).collect();
    let request = ContextRequest { export: params.export.clone(), queries }.encode();
    let option = OptionKind::SetMetaContext;
    let answer = ask(wire, option, &request).map_err(|fault| fault.in_handshake(&params.export))?;
    let replies = match answer {
        Answer::Acknowledged(replies) => replies,
        Answer::Refused { reply: OptionReplyKind::Unsupported, .. } => Vec::new(),
        Answer::Refused { reply, message } => {
            return Err(refused(params, option, reply, message));
        }
    };
    let contexts = replies.into_iter().map(|(reply, data)| match reply {
        OptionReplyKind::MetaContext => ContextReply::decode(&data).map_err(Fault::from),
        reply => Err(Violation::UnexpectedOptionReply { option, reply }.into()),
    });
    contexts.collect::<Result<_, _>>().map_err(|fault| fault.in_handshake(&params.export))
}

fn read_facts(facts: Answers) -> Result<(u64, ExportFlags, BlockSizes), Fault> {
    let option = OptionKind::Go;
    let mut export = None;
    // What the protocol says of servers that tell no sizes.
    let mut sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD_LEN };
    for (reply, data) in facts {
        if reply != OptionReplyKind::Info {
            return Err(Violation::UnexpectedOptionReply { option, reply }.into());
        }
        match Info::decode(&data)? {
            Info::Export { size, flags } => export = Some((size, flags)),
            Info::BlockSize(told) => sizes = told,
            Info::Other(_) => {}
        }
    }
    let (size, flags) = export.ok_or(Violation::NoSize)?;
    if i64::try_from(size).is_err() {
        return Err(Violation::TooLarge { size }.into());
    }
    Ok((size, flags, sizes))
}

/// Asks for an option that must not be refused.
fn answers(
    wire: &mut Wire,
    params: &ConnectParams,
    option: OptionKind,
    data: &[u8],
) -> Result<Answers, Error> {
    match ask(wire, option, data).map_err(|fault| fault.in_handshake(&params.export))? {
        Answer::Acknowledged(answers) => Ok(answers),
        Answer::Refused { reply, message } => Err(refused(params, option, reply, message)),
    }
}

fn refused(
    params: &ConnectParams,
    option: OptionKind,
    reply: OptionReplyKind,
    message: String,
) -> Error {
    Error::Refused { export: params.export.clone(), option, reply, message }
}

fn ask(wire: &mut Wire, option: OptionKind, data: &[u8]) -> Result<Answer, Fault> {
    let header = OptionHeader { kind: option, len: on_wire(data.len()) }.encode();
    wire.send(&mut [IoSlice::new(&header), IoSlice::new(data)])?;
    let mut answers = Vec::new();
    while answers.len() < MAX_REPLIES {
        let bytes = wire.receive_array::<{ OptionReplyHeader::LEN }>()?;
        let header = OptionReplyHeader::decode(&bytes)?;
        if header.option != option {
            return Err(Violation::OtherOption { expected: option, found: header.option }.into());
        }
        if header.len > MAX_OPTION_LEN {
            return Err(Violation::TooLong { len: header.len }.into());
        }
        let data = wire.receive_vec(in_memory(header.len))?;
        if header.kind.is_error() {
            let message = String::from_utf8_lossy(&data).into_owned();
            return Ok(Answer::Refused { reply: header.kind, message });
        }
        if header.kind == OptionReplyKind::Ack {
            return Ok(Answer::Acknowledged(answers));
        }
        answers.push((header.kind, data));
    }
    Err(Violation::TooManyReplies { option }.into())
}
