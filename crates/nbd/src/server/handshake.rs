//! The server's side of the handshake: options in, bytes out, without a socket.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Export;
use crate::client::BASE_ALLOCATION;
use crate::codec::{
    BlockSizes, ClientFlags, ContextReply, ContextRequest, ExportFlags, ExportRequest, Info,
    ListReply, Malformed, OptionKind, OptionReplyHeader, OptionReplyKind, on_wire,
};

/// The number that block status replies use for `base:allocation`.
pub(super) const ALLOCATION_ID: u32 = 0;

/// The exports by name.
pub(super) type Exports = BTreeMap<String, Arc<dyn Export>>;

/// What the transmission phase of one connection is about.
pub(super) struct Session {
    pub(super) export: Arc<dyn Export>,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// What to do after the answer to an option has been sent.
pub(super) enum Next {
    /// Wait for the next option.
    Option,
    /// Enter the transmission phase.
    Transmission(Session),
    /// Close the connection.
    End,
}

/// A handshake, as far as it has come.
pub(super) struct Handshake<'a> {
    exports: &'a Exports,
    flags: ClientFlags,
    max_payload: u32,
    structured: bool,
    /// The export for which `base:allocation` was chosen.
    allocation_of: Option<String>,
}

impl<'a> Handshake<'a> {
    /// Starts after the client's flags, which have been checked.
    pub(super) fn new(exports: &'a Exports, flags: ClientFlags, max_payload: u32) -> Self {
        Self { exports, flags, max_payload, structured: false, allocation_of: None }
    }

    /// Answers an option; the answer is appended to `out`.
    pub(super) fn answer(&mut self, option: OptionKind, data: &[u8], out: &mut Vec<u8>) -> Next {
        if option == OptionKind::ExportName {
            return self.export_name(data, out);
        }
        let mut answer = Answer { option, out };
        let next = match option {
            OptionKind::Abort => {
                answer.ack();
                return Next::End;
            }
            OptionKind::List if data.is_empty() => {
                self.list(&mut answer);
                Ok(Next::Option)
            }
            OptionKind::StructuredReply if data.is_empty() => {
                self.structured = true;
                answer.ack();
                Ok(Next::Option)
            }
            OptionKind::List | OptionKind::StructuredReply => {
                answer.error(OptionReplyKind::Invalid, "the option takes no data");
                Ok(Next::Option)
            }
            OptionKind::Info | OptionKind::Go => self.describe(&mut answer, data),
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                self.contexts(&mut answer, data)
            }
            _ => {
                answer.error(OptionReplyKind::Unsupported, "the option is not known");
                Ok(Next::Option)
            }
        };
        next.unwrap_or_else(|malformed| {
            answer.error(OptionReplyKind::Invalid, &malformed.to_string());
            Next::Option
        })
    }

    fn export_name(&self, name: &[u8], out: &mut Vec<u8>) -> Next {
        let name = std::str::from_utf8(name).ok();
        let Some(export) = name.and_then(|name| self.exports.get(name)) else { return Next::End };
        out.extend(export.size().to_be_bytes());
        out.extend(self.export_flags(&**export).0.to_be_bytes());
        if !self.flags.has(ClientFlags::NO_ZEROES) {
            out.extend([0; 124]);
        }
        Next::Transmission(self.session(name.unwrap_or_default(), export))
    }

    fn list(&self, answer: &mut Answer<'_>) {
        for name in self.exports.keys() {
            answer.send(OptionReplyKind::Server, &ListReply { name: name.clone() }.encode());
        }
        answer.ack();
    }

    fn describe(&self, answer: &mut Answer<'_>, data: &[u8]) -> Result<Next, Malformed> {
        let request = ExportRequest::decode(data)?;
        let Some(export) = self.exports.get(&request.name) else {
            answer.error(OptionReplyKind::UnknownExport, "there is no such export");
            return Ok(Next::Option);
        };
        let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: self.max_payload };
        answer.send(OptionReplyKind::Info, &Info::BlockSize(sizes).encode());
        let flags = self.export_flags(&**export);
        answer.send(OptionReplyKind::Info, &Info::Export { size: export.size(), flags }.encode());
        answer.ack();
        Ok(if answer.option == OptionKind::Go {
            Next::Transmission(self.session(&request.name, export))
        } else {
            Next::Option
        })
    }

    fn contexts(&mut self, answer: &mut Answer<'_>, data: &[u8]) -> Result<Next, Malformed> {
        let request = ContextRequest::decode(data)?;
        if !self.structured {
            answer.error(OptionReplyKind::Invalid, "structured replies come first");
            return Ok(Next::Option);
        }
        let set = answer.option == OptionKind::SetMetaContext;
        if set {
            self.allocation_of = None;
        }
        let Some(export) = self.exports.get(&request.export) else {
            answer.error(OptionReplyKind::UnknownExport, "there is no such export");
            return Ok(Next::Option);
        };
        let wanted = |query: &String| query == BASE_ALLOCATION || (!set && query == "base:");
        let is_wanted = request.queries.iter().any(wanted) || (!set && request.queries.is_empty());
        if is_wanted && export.tells_block_status() {
            let context = ContextReply { id: ALLOCATION_ID, name: BASE_ALLOCATION.to_owned() };
            answer.send(OptionReplyKind::MetaContext, &context.encode());
            if set {
                self.allocation_of = Some(request.export);
            }
        }
        answer.ack();
        Ok(Next::Option)
    }

    fn session(&self, name: &str, export: &Arc<dyn Export>) -> Session {
        let allocation = self.allocation_of.as_deref() == Some(name);
        Session { export: Arc::clone(export), structured: self.structured, allocation }
    }

    fn export_flags(&self, export: &dyn Export) -> ExportFlags {
        // All connections of an export share its backend, hence MULTI_CONN.
        let flags = ExportFlags::HAS_FLAGS
            .with(ExportFlags::FLUSH)
            .with(ExportFlags::FUA)
            .with(ExportFlags::MULTI_CONN);
        let flags = if self.structured { flags.with(ExportFlags::DO_NOT_FRAGMENT) } else { flags };
        if export.read_only() {
            flags.with(ExportFlags::READ_ONLY)
        } else {
            flags.with(ExportFlags::TRIM).with(ExportFlags::WRITE_ZEROES)
        }
    }
}

/// Appends the replies to one option.
struct Answer<'a> {
    option: OptionKind,
    out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn send(&mut self, kind: OptionReplyKind, data: &[u8]) {
        let header = OptionReplyHeader { option: self.option, kind, len: on_wire(data.len()) };
        self.out.extend(header.encode());
        self.out.extend(data);
    }

    fn ack(&mut self) {
        self.send(OptionReplyKind::Ack, &[]);
    }

    fn error(&mut self, kind: OptionReplyKind, message: &str) {
        self.send(kind, message.as_bytes());
    }
}
