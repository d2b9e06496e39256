//! Takes a stream apart while it arrives.
//!
//! ```text
//! Header -> Configuration -> Subsections -> Section <--------------+
//!                                           |  |  |                |
//!                    START "ram" -----------+  |  +--- PART, END --+--> Records
//!                    BlockTable -> SetupEnd ---+---> Footer -------+
//!                    FULL, before any page: EarlyBody -------------+
//!                    FULL, after pages: Tail, to the end of the stream
//! ```
//!
//! Every step looks at the bytes from the start of an item and either takes the
//! whole item or changes nothing, so it does not matter how the stream is cut.
//! What is not a page is copied to the skeleton that becomes the device state.

mod ram_section;

use crate::cursor::{Cursor, Halt};
use crate::ram::RamBlocks;
use crate::section::{SectionHeader, early_body_len};
use crate::skeleton::Skeleton;
use crate::{
    Command, DeviceState, Error, Event, Limits, RamBlock, RamBlockId, RamPhase, Step,
    configuration, wire,
};

/// An incremental parser of one stream.
///
/// After an error it stays where it is: drop it.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    state: State,
    /// How many bytes of the stream are done with.
    offset: u64,
    blocks: RamBlocks,
    /// The block that a record without a name belongs to.
    last_block: Option<RamBlockId>,
    skeleton: Skeleton,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Configuration,
    Subsections,
    Section,
    TableSize,
    BlockTable { remaining: u64 },
    SetupEnd,
    Records { phase: RamPhase },
    Footer { section: u32, of: FooterOf },
    EarlyBody { section: u32, remaining: u64 },
    Tail,
}

#[derive(Debug, Clone, Copy)]
enum FooterOf {
    Setup,
    Early,
    Pages(RamPhase),
}

/// What one step did: how many bytes it took, and what there is to tell.
type Taken<'b> = Result<(usize, Option<Event<'b>>), Halt>;

impl Parser {
    /// Makes a parser that stands at the start of a stream.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Header,
            offset: 0,
            blocks: RamBlocks::default(),
            last_block: None,
            skeleton: Skeleton::new(limits.max_device_state),
        }
    }

    /// Returns the RAM blocks: all of them once [`Event::RamSetup`] was told.
    pub fn ram_blocks(&self) -> &[RamBlock] {
        self.blocks.as_slice()
    }

    /// Returns how many bytes of the stream are done with.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks at the bytes that follow those already consumed.
    ///
    /// The caller drops `consumed` bytes and calls again, with more when more is
    /// needed. Pages are slices of `input`; nothing is copied but what the
    /// device state needs.
    ///
    /// # Errors
    /// The stream is malformed, uses what cannot be restored, or passes a limit.
    pub fn next<'b>(&mut self, input: &'b [u8]) -> Result<Step<'b>, Error> {
        let mut consumed = 0;
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            match self.step(rest) {
                Ok((taken, event)) => {
                    consumed += taken;
                    self.offset = self.offset.saturating_add(taken as u64);
                    if let Some(event) = event {
                        return Ok(Step::Event { consumed, event });
                    }
                }
                Err(Halt::Short(at_least)) => return Ok(Step::NeedMore { consumed, at_least }),
                Err(Halt::Bad(error)) => return Err(error),
            }
        }
    }

    /// Ends the parse where the sender closed the stream.
    ///
    /// # Errors
    /// The stream is not complete, or its end is malformed.
    pub fn finish(self) -> Result<DeviceState, Error> {
        match self.state {
            State::Tail => self.skeleton.finish(self.blocks.into_vec(), self.offset),
            state => Err(Error::Truncated { offset: self.offset, within: state.describe() }),
        }
    }

    fn step<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        match self.state {
            State::Records { phase } => self.record(input, phase),
            State::Section => self.section(input),
            State::Footer { section, of } => self.footer(input, section, of),
            State::Tail => self.tail(input),
            State::Header => self.header(input),
            State::Configuration => self.configuration(input),
            State::Subsections => self.subsection(input),
            State::TableSize => self.table_size(input),
            State::BlockTable { remaining } => self.table_entry(input, remaining),
            State::SetupEnd => self.setup_end(input),
            State::EarlyBody { section, remaining } => self.early_body(input, section, remaining),
        }
    }

    fn header<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let start = Cursor::new(input).array::<8>()?;
        if !start.starts_with(&wire::MAGIC) || !start.ends_with(&wire::VERSION) {
            return Err(Error::NotAStream { start: *start }.into());
        }
        self.keep(start)?;
        self.state = State::Configuration;
        Ok((start.len(), None))
    }

    fn configuration<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let machine = configuration::machine(&mut cursor, self.offset)?;
        self.keep(&input[..cursor.position()])?;
        self.skeleton.set_machine(machine);
        self.state = State::Subsections;
        Ok((cursor.position(), Some(Event::Configuration { machine })))
    }

    fn subsection<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        if !configuration::subsection(&mut cursor, self.offset)? {
            self.skeleton.begin_setup();
            self.state = State::Section;
            return Ok((0, None));
        }
        self.keep(&input[..cursor.position()])?;
        Ok((cursor.position(), None))
    }

    /// Reads the header of a section and decides what it is the start of.
    fn section<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let kind = cursor.u8()?;
        match kind {
            wire::SECTION_START => self.start_section(input),
            wire::SECTION_PART => self.pages_section(&mut cursor, RamPhase::Iterating),
            wire::SECTION_END => self.pages_section(&mut cursor, RamPhase::Last),
            wire::SECTION_FULL if !self.skeleton.has_seen_pages() => self.early_section(input),
            wire::SECTION_FULL | wire::EOF if self.skeleton.has_seen_pages() => {
                self.start_tail();
                Ok((0, None))
            }
            wire::COMMAND => self.command(&mut cursor, input),
            _ => Err(self.malformed(format!("section type {kind:#04x} in this place"))),
        }
    }

    fn start_section<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let header = SectionHeader::read(&mut cursor, self.offset)?;
        if header.name != wire::RAM_SECTION {
            return Err(self.unsupported(format!("the iterating section {:?}", header.name)));
        }
        if self.skeleton.ram_section().is_some() {
            return Err(self.malformed("a second RAM section".into()));
        }
        if header.version != wire::RAM_VERSION {
            return Err(self.unsupported(format!("version {} of RAM", header.version)));
        }
        self.keep(&input[..cursor.position()])?;
        self.skeleton.set_ram_section(header.id);
        self.state = State::TableSize;
        Ok((cursor.position(), None))
    }

    /// Reads a device section that comes before the pages. Its length follows
    /// from the one format that QEMU sends in this place.
    fn early_section<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let header = SectionHeader::read(&mut cursor, self.offset)?;
        let start = cursor.position();
        let Some(body) = early_body_len(header.name, &mut cursor)? else {
            return Err(self.unsupported(format!("the early section {:?}", header.name)));
        };
        self.keep(&input[..start])?;
        self.state = State::EarlyBody { section: header.id, remaining: body };
        Ok((start, None))
    }

    fn early_body<'b>(&mut self, input: &'b [u8], section: u32, remaining: u64) -> Taken<'b> {
        if remaining == 0 {
            self.state = State::Footer { section, of: FooterOf::Early };
            return Ok((0, None));
        }
        let count = usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len());
        if count == 0 {
            return Err(Halt::Short(1));
        }
        self.keep(&input[..count])?;
        self.state = State::EarlyBody { section, remaining: remaining - count as u64 };
        Ok((count, None))
    }

    /// Keeps the only command that belongs to a state, and drops those that
    /// belong to the conversation with a receiver.
    fn command<'b>(&mut self, cursor: &mut Cursor<'b>, input: &'b [u8]) -> Taken<'b> {
        match Command::read(cursor, self.offset)? {
            Command::OpenReturnPath | Command::Ping(_) => {}
            Command::SwitchoverStart => {
                if !self.skeleton.begin_switchover() {
                    return Err(self.malformed("a second switchover".into()));
                }
                self.keep(&input[..cursor.position()])?;
            }
            command => return Err(self.unsupported(format!("the command {}", command.name()))),
        }
        Ok((cursor.position(), None))
    }

    fn pages_section<'b>(&mut self, cursor: &mut Cursor<'b>, phase: RamPhase) -> Taken<'b> {
        let section = cursor.be32()?;
        if self.skeleton.ram_section() != Some(section) {
            return Err(self.malformed(format!("pages of section {section}, which is not RAM")));
        }
        self.skeleton.begin_pages();
        self.state = State::Records { phase };
        Ok((cursor.position(), Some(Event::RamSection { phase })))
    }

    fn footer<'b>(&mut self, input: &'b [u8], section: u32, of: FooterOf) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let mark = cursor.u8()?;
        if mark != wire::FOOTER {
            return Err(self.malformed(format!("{mark:#04x} where the section's footer belongs")));
        }
        let found = cursor.be32()?;
        if found != section {
            return Err(self.malformed(format!("section {section} has the footer of {found}")));
        }
        self.state = State::Section;
        let event = match of {
            FooterOf::Setup => Some(Event::RamSetup),
            FooterOf::Early => None,
            FooterOf::Pages(phase) => Some(Event::RamSectionEnd { phase }),
        };
        match of {
            FooterOf::Setup | FooterOf::Early => self.keep(&input[..cursor.position()])?,
            FooterOf::Pages(RamPhase::Last) => self.start_tail(),
            FooterOf::Pages(RamPhase::Iterating) => {}
        }
        Ok((cursor.position(), event))
    }

    fn start_tail(&mut self) {
        self.skeleton.begin_tail();
        self.state = State::Tail;
    }

    fn tail<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        if input.is_empty() {
            return Err(Halt::Short(1));
        }
        self.keep(input)?;
        Ok((input.len(), Some(Event::DeviceBytes { count: input.len() })))
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        Ok(self.skeleton.keep(bytes, self.offset)?)
    }

    fn ram_section(&self) -> Result<u32, Halt> {
        self.skeleton.ram_section().ok_or_else(|| self.malformed("no RAM section".into()))
    }

    fn malformed(&self, fault: String) -> Halt {
        Error::Malformed { offset: self.offset, fault }.into()
    }

    fn unsupported(&self, feature: String) -> Halt {
        Error::Unsupported { offset: self.offset, feature }.into()
    }

    fn too_large(&self, what: &'static str, found: u64, limit: u64) -> Halt {
        Error::TooLarge { offset: self.offset, what, found, limit }.into()
    }
}

impl State {
    fn describe(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::Configuration | Self::Subsections => "the configuration",
            Self::Section => "the sequence of sections",
            Self::TableSize | Self::BlockTable { .. } | Self::SetupEnd => "the RAM block table",
            Self::Records { .. } => "a section of pages",
            Self::Footer { .. } => "the footer of a section",
            Self::EarlyBody { .. } => "an early device section",
            Self::Tail => "the device sections",
        }
    }
}
