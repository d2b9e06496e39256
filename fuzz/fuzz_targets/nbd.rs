//! Any bytes as each message of an NBD peer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tintype_nbd::codec::{
    BlockStatusReply, ContextReply, ContextRequest, ErrorReply, ExportRequest, Greeting, HoleReply,
    Info, ListReply, OptionHeader, OptionReplyHeader, ReplyStart, Request,
};

fuzz_target!(|data: &[u8]| {
    let Some((&message, bytes)) = data.split_first() else { return };
    match message {
        0 => drop(Greeting::decode(bytes)),
        1 => drop(OptionHeader::decode(bytes)),
        2 => drop(OptionReplyHeader::decode(bytes)),
        3 => drop(ExportRequest::decode(bytes)),
        4 => drop(Info::decode(bytes)),
        5 => drop(ContextRequest::decode(bytes)),
        6 => drop(ContextReply::decode(bytes)),
        7 => drop(ListReply::decode(bytes)),
        8 => drop(ReplyStart::decode(bytes)),
        9 => drop(HoleReply::decode(bytes)),
        10 => drop(ErrorReply::decode(bytes)),
        11 => drop(BlockStatusReply::decode(bytes)),
        _ => drop(Request::decode(bytes)),
    }
});
