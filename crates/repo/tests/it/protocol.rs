//! The protocol of sessions, deletion, collection, compaction and pins as a model
//! that is checked in all its states, for several small sets of writers,
//! compactors, collectors, a reader, and a user who deletes and undoes. Each rule
//! is left out once, and then something must be lost.

use stateright::{Checker, Model, Property};

/// Segments 0 and 6 belong to the first snapshot, segment 1 + w to writer w,
/// segment 3 + c to compactor c.
type Segments = u8;
/// Where the first snapshot is until it is moved.
const FIRST: Segments = 1 | 1 << 6;
const SEGMENTS: u8 = 7;

/// The rules whose absence loses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    /// A writer reads the epoch again after putting its slot.
    ReadEpochAgain,
    /// A writer refers to nothing that its epoch condemned.
    AvoidCondemned,
    /// A writer refers only to segments of committed sessions.
    CommittedOnly,
    /// The first outcome wins: an ended session cannot commit.
    Fence,
    /// The abort of a writer that may still live, or whose commit is still on
    /// its way, stays.
    KeepAborted,
    /// Writers of older epochs are ended or waited for before the second mark.
    EndOlder,
    /// A collector marks again before it decides.
    MarkAgain,
    /// The first end of a deletion wins: what is collected is not undone.
    FirstEndWins,
    /// The second mark spares snapshots whose deletion came after that.
    SpareOpen,
    /// A reader looks for its snapshot after putting its slot.
    PinFirst,
    /// A compactor looks where the snapshot is after putting its slot.
    LookAfterSlot,
    /// Of two versions that were made of the same one, all take the same.
    SameVersion,
    /// What a reader may read of versions that do not count any more is spared.
    SpareRead,
    /// A move that others have followed is not forgotten while someone reads.
    KeepReadMove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Outcome {
    None,
    Aborted,
    Committed(Segments),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Deletion {
    Never,
    Open,
    Undone,
    Collected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum WriterStep {
    ReadEpoch,
    PutSlot,
    ReadAgain,
    List,
    Store,
    Commit,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    step: WriterStep,
    epoch: u8,
    slot: Option<u8>,
    forbidden: Segments,
    refers: Segments,
}

/// How a compactor ended: the first snapshot is there now, as this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Move {
    None,
    Aborted,
    Moved { version: u8, to: Segments },
    Forgotten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CompactorStep {
    ReadEpoch,
    PutSlot,
    ReadAgain,
    Look,
    Store,
    Commit,
    Over,
}

/// Moves one segment of the first snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Compactor {
    step: CompactorStep,
    epoch: u8,
    slot: Option<u8>,
    forbidden: Segments,
    version: u8,
    keeps: Segments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CollectorStep {
    Begin,
    /// Reading deletions, outcomes, slots; then to condemn or to finalize.
    Mark {
        read: u8,
        again: bool,
    },
    ListSegments,
    PutEpoch,
    EndSessions,
    EndDeletions,
    Delete,
    Forget,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Collector {
    step: CollectorStep,
    epoch: u8,
    /// Whether it ends the deletions that are open, or leaves them in the trash.
    ends_open: bool,
    /// What the mark has read so far.
    deleted: u8,
    pinned: u8,
    /// What each snapshot needs, and where the first one was before.
    places: [Segments; 3],
    superseded: Segments,
    needed: Segments,
    /// Condemned, later to delete.
    doomed: Segments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ReaderStep {
    Begin,
    /// It has a slot and has not looked for the snapshot yet.
    Registered,
    /// Only without the rule: it has seen the snapshot and has no slot.
    Looked,
    Reading(Segments),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Epoch {
    condemned: Segments,
    decided: Option<Segments>,
    done: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    epochs: Vec<Epoch>,
    segments: Segments,
    /// Of the first snapshot, then of each writer.
    outcomes: [Outcome; 3],
    deletions: [Deletion; 3],
    moves: Vec<Move>,
    writers: Vec<Writer>,
    compactors: Vec<Compactor>,
    collectors: Vec<Collector>,
    reader: ReaderStep,
}

impl State {
    /// Returns the move that counts and its version, and where the first snapshot
    /// is; `lowest` if of two the same that of the lower id is taken.
    fn first(&self, lowest: bool) -> (Option<usize>, u8, Segments) {
        let mut current = (None, 0, FIRST);
        for (c, end) in self.moves.iter().enumerate() {
            if let Move::Moved { version, to } = *end
                && (version > current.1 || (version == current.1 && !lowest))
            {
                current = (Some(c), version, to);
            }
        }
        current
    }

    fn is_first_there(&self) -> bool {
        matches!(self.deletions[0], Deletion::Never | Deletion::Undone)
    }

    /// What a committed snapshot needs.
    fn needs(&self, s: usize) -> Segments {
        match self.outcomes[s] {
            Outcome::Committed(_) if s == 0 => self.first(false).2,
            Outcome::Committed(refers) => refers,
            Outcome::None | Outcome::Aborted => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Writer(usize),
    /// A writer chooses what to refer to beside its own segment.
    Refer(usize, Segments),
    Compactor(usize),
    /// A compactor chooses what to move.
    Empty(usize, Segments),
    Collector(usize),
    /// A collector begins, and is told whether what is deleted is due.
    Collect(usize, bool),
    Reader,
    Delete(usize),
    Undo(usize),
}

#[derive(Debug, Clone, Copy)]
struct Protocol {
    writers: usize,
    compactors: usize,
    collectors: usize,
    epochs: u8,
    reader: bool,
    /// Whether some collections leave what is deleted in the trash.
    keeps_trash: bool,
    without: Option<Rule>,
}

impl Protocol {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn writer(&self, state: &mut State, w: usize) -> Option<()> {
        let newest = u8::try_from(state.epochs.len()).unwrap() - 1;
        let mut writer = state.writers[w];
        match writer.step {
            WriterStep::ReadEpoch => {
                writer.epoch = newest;
                writer.step = WriterStep::PutSlot;
            }
            WriterStep::PutSlot => {
                writer.slot = Some(writer.epoch);
                writer.step = WriterStep::ReadAgain;
            }
            WriterStep::ReadAgain if newest != writer.epoch && self.has(Rule::ReadEpochAgain) => {
                writer.slot = None;
                writer.step = WriterStep::ReadEpoch;
            }
            WriterStep::ReadAgain => {
                let epoch = state.epochs[usize::from(writer.epoch)];
                let forbids = !epoch.done && self.has(Rule::AvoidCondemned);
                writer.forbidden = if forbids { epoch.condemned } else { 0 };
                writer.step = WriterStep::List;
            }
            WriterStep::List | WriterStep::Over => return None,
            WriterStep::Store => {
                state.segments |= 2 << w;
                writer.step = WriterStep::Commit;
            }
            WriterStep::Commit => {
                let outcome = &mut state.outcomes[1 + w];
                if *outcome == Outcome::None || !self.has(Rule::Fence) {
                    *outcome = Outcome::Committed(writer.refers | 2 << w);
                }
                writer.slot = None;
                writer.step = WriterStep::Over;
            }
        }
        state.writers[w] = writer;
        Some(())
    }

    /// What a writer may refer to when it lists the segments.
    fn usable(&self, state: &State, w: usize) -> Segments {
        let committed = (0..3)
            .filter(|s| matches!(state.outcomes[*s], Outcome::Committed(_)))
            .fold(FIRST & !1, |mask, s| mask | 1 << s);
        let moved = state.moves.iter().enumerate();
        let moved = moved.filter(|(_, end)| matches!(end, Move::Moved { .. } | Move::Forgotten));
        let committed = moved.fold(committed, |mask, (c, _)| mask | 8 << c);
        let owned = if self.has(Rule::CommittedOnly) { committed } else { !(2 << w) };
        state.segments & owned & !state.writers[w].forbidden
    }

    fn compactor(&self, state: &mut State, c: usize) -> Option<()> {
        let newest = u8::try_from(state.epochs.len()).unwrap() - 1;
        let looks_first = !self.has(Rule::LookAfterSlot);
        let mut compactor = state.compactors[c];
        compactor.step = match compactor.step {
            CompactorStep::ReadEpoch => {
                compactor.epoch = newest;
                CompactorStep::PutSlot
            }
            CompactorStep::PutSlot => {
                compactor.slot = Some(compactor.epoch);
                CompactorStep::ReadAgain
            }
            CompactorStep::ReadAgain if newest != compactor.epoch => {
                compactor.slot = None;
                CompactorStep::ReadEpoch
            }
            CompactorStep::ReadAgain => {
                let epoch = state.epochs[usize::from(compactor.epoch)];
                compactor.forbidden = if epoch.done { 0 } else { epoch.condemned };
                if looks_first { CompactorStep::Store } else { CompactorStep::Look }
            }
            CompactorStep::Look => {
                // It finds nothing to move.
                compactor.slot = None;
                CompactorStep::Over
            }
            CompactorStep::Store => {
                state.segments |= 8 << c;
                CompactorStep::Commit
            }
            CompactorStep::Commit => {
                if state.moves[c] == Move::None {
                    let (version, to) = (compactor.version, compactor.keeps | 8 << c);
                    state.moves[c] = Move::Moved { version, to };
                }
                compactor.slot = None;
                CompactorStep::Over
            }
            CompactorStep::Over => return None,
        };
        state.compactors[c] = compactor;
        Some(())
    }

    /// A compactor finds the snapshot, and chooses a segment to move.
    fn empty(&self, state: &mut State, c: usize, segment: Segments) {
        let (_, version, places) = state.first(false);
        let compactor = &mut state.compactors[c];
        (compactor.version, compactor.keeps) = (version + 1, places & !segment);
        compactor.step = match self.has(Rule::LookAfterSlot) {
            true => CompactorStep::Store,
            false => CompactorStep::ReadEpoch,
        };
    }

    fn collector(&self, state: &mut State, c: usize) -> Option<()> {
        let newest = state.epochs.len() - 1;
        let mut collector = state.collectors[c];
        match collector.step {
            CollectorStep::Begin => {
                let done = state.epochs[newest].done;
                if done && newest >= usize::from(self.epochs) {
                    return None;
                }
                collector.epoch = u8::try_from(newest + usize::from(done)).unwrap();
                collector.doomed = state.epochs[newest].condemned;
                collector.step = match done {
                    true => CollectorStep::Mark { read: 0, again: false },
                    false => CollectorStep::EndSessions,
                };
            }
            CollectorStep::Mark { read, again } => {
                self.mark(state, &mut collector, read, again);
            }
            CollectorStep::ListSegments => {
                collector.doomed = state.segments & !collector.needed;
                collector.step = CollectorStep::PutEpoch;
            }
            CollectorStep::PutEpoch if newest < usize::from(collector.epoch) => {
                let condemned = collector.doomed;
                state.epochs.push(Epoch { condemned, decided: None, done: false });
                collector.step = CollectorStep::EndSessions;
            }
            CollectorStep::PutEpoch => {
                collector.doomed = state.epochs[usize::from(collector.epoch)].condemned;
                collector.step = CollectorStep::EndSessions;
            }
            CollectorStep::EndSessions => self.end_one_session(state, &mut collector),
            CollectorStep::EndDeletions => {
                let open = state.deletions.iter_mut().filter(|d| **d == Deletion::Open);
                open.filter(|_| collector.ends_open).for_each(|d| *d = Deletion::Collected);
                collector.step = CollectorStep::Mark { read: 0, again: true };
            }
            CollectorStep::Delete if state.segments & collector.doomed != 0 => {
                let present = state.segments & collector.doomed;
                state.segments &= !(1 << present.trailing_zeros());
            }
            CollectorStep::Delete => collector.step = CollectorStep::Forget,
            CollectorStep::Forget => {
                self.forget_moves(state);
                state.epochs[usize::from(collector.epoch)].done = true;
                collector.step = CollectorStep::Over;
            }
            CollectorStep::Over => {
                collector.ends_open = false;
                collector.step = CollectorStep::Begin;
            }
        }
        if state.collectors[c] == collector
            && collector.step != CollectorStep::Delete
            && !matches!(collector.step, CollectorStep::EndSessions)
        {
            return None;
        }
        state.collectors[c] = collector;
        Some(())
    }

    /// Forgets the moves that others have followed.
    fn forget_moves(&self, state: &mut State) {
        let is_read = matches!(state.reader, ReaderStep::Registered | ReaderStep::Reading(_));
        let (current, ..) = state.first(false);
        for (c, end) in state.moves.iter_mut().enumerate() {
            let is_kept = current == Some(c) || (is_read && self.has(Rule::KeepReadMove));
            if matches!(end, Move::Moved { .. }) && !is_kept {
                *end = Move::Forgotten;
            }
        }
    }

    /// One of the three reads of a mark, and what follows the last.
    fn mark(&self, state: &mut State, collector: &mut Collector, read: u8, again: bool) {
        let takes_open = if again { !self.has(Rule::SpareOpen) } else { collector.ends_open };
        let gone = |d: &Deletion| *d == Deletion::Collected || (*d == Deletion::Open && takes_open);
        if read == 0 {
            let deleted = state.deletions.iter().enumerate().filter(|(_, d)| gone(d));
            collector.deleted = deleted.fold(0, |mask, (s, _)| mask | 1 << s);
        } else if read == 2 {
            let registered =
                matches!(state.reader, ReaderStep::Registered | ReaderStep::Reading(_));
            collector.pinned = u8::from(registered);
        } else {
            let (current, _, first) = state.first(!self.has(Rule::SameVersion));
            collector.places = [first, state.needs(1), state.needs(2)];
            let old = |(c, end): (usize, &Move)| match end {
                Move::Moved { to, .. } if current != Some(c) => *to,
                _ => 0,
            };
            let superseded = state.moves.iter().enumerate().map(old);
            let superseded = superseded.fold(FIRST, |all, to| all | to);
            collector.superseded = if self.has(Rule::SpareRead) { superseded } else { 0 };
        }
        if read == 2 {
            let spared = !collector.deleted | collector.pinned;
            let needs = (0..3).filter(|s| spared & 1 << s != 0).map(|s| collector.places[s]);
            collector.needed = needs.fold(0, |all, needs| all | needs);
            if collector.pinned != 0 {
                collector.needed |= collector.superseded;
            }
        }
        collector.step = match (read, again) {
            (0 | 1, _) => CollectorStep::Mark { read: read + 1, again },
            (_, false) => CollectorStep::ListSegments,
            (_, true) => {
                if self.has(Rule::MarkAgain) {
                    collector.doomed &= !collector.needed;
                }
                let epoch = &mut state.epochs[usize::from(collector.epoch)];
                collector.doomed = *epoch.decided.get_or_insert(collector.doomed);
                CollectorStep::Delete
            }
        };
        if matches!(collector.step, CollectorStep::ListSegments | CollectorStep::Delete) {
            (collector.deleted, collector.pinned) = (0, 0);
            (collector.places, collector.superseded) = ([0; 3], 0);
        }
    }

    /// Ends the first writer of an older epoch, dead or not, with its segment.
    fn end_one_session(&self, state: &mut State, collector: &mut Collector) {
        let older = |w: &Writer| w.slot.is_some_and(|epoch| epoch < collector.epoch);
        let open = |w: &usize| older(&state.writers[*w]) && state.outcomes[1 + w] == Outcome::None;
        let found = (0..state.writers.len()).find(open).filter(|_| self.has(Rule::EndOlder));
        match found {
            Some(w) => {
                state.outcomes[1 + w] = Outcome::Aborted;
                state.segments &= !(2 << w);
                if !self.has(Rule::KeepAborted) {
                    state.outcomes[1 + w] = Outcome::None;
                    state.writers[w].slot = None;
                }
            }
            None if self.end_one_compactor(state, collector.epoch) => {}
            None => {
                collector.needed = 0;
                collector.step = CollectorStep::EndDeletions;
            }
        }
    }

    fn end_one_compactor(&self, state: &mut State, epoch: u8) -> bool {
        let older = |c: &Compactor| c.slot.is_some_and(|slot| slot < epoch);
        let open = |c: &usize| older(&state.compactors[*c]) && state.moves[*c] == Move::None;
        let found = (0..state.compactors.len()).find(open);
        if let Some(c) = found {
            state.moves[c] = Move::Aborted;
            state.segments &= !(8 << c);
        }
        found.is_some()
    }

    fn reader(&self, state: &mut State) -> Option<()> {
        let there = state.is_first_there();
        state.reader = match state.reader {
            ReaderStep::Begin if self.has(Rule::PinFirst) => ReaderStep::Registered,
            ReaderStep::Begin if there => ReaderStep::Looked,
            ReaderStep::Looked => ReaderStep::Reading(state.first(false).2),
            ReaderStep::Registered if there => ReaderStep::Reading(state.first(false).2),
            ReaderStep::Begin | ReaderStep::Registered | ReaderStep::Reading(_) => ReaderStep::Over,
            ReaderStep::Over => return None,
        };
        Some(())
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let writer =
            Writer { step: WriterStep::ReadEpoch, epoch: 0, slot: None, forbidden: 0, refers: 0 };
        let collector = Collector {
            step: CollectorStep::Begin,
            epoch: 0,
            ends_open: false,
            deleted: 0,
            pinned: 0,
            places: [0; 3],
            superseded: 0,
            needed: 0,
            doomed: 0,
        };
        let step = match self.has(Rule::LookAfterSlot) {
            true => CompactorStep::ReadEpoch,
            false => CompactorStep::Look,
        };
        let compactor =
            Compactor { step, epoch: 0, slot: None, forbidden: 0, version: 0, keeps: 0 };
        vec![State {
            epochs: vec![Epoch { condemned: 0, decided: Some(0), done: true }],
            segments: FIRST,
            outcomes: [Outcome::Committed(FIRST), Outcome::None, Outcome::None],
            deletions: [Deletion::Never; 3],
            moves: vec![Move::None; self.compactors],
            writers: vec![writer; self.writers],
            compactors: vec![compactor; self.compactors],
            collectors: vec![collector; self.collectors],
            reader: if self.reader { ReaderStep::Begin } else { ReaderStep::Over },
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (w, writer) in state.writers.iter().enumerate() {
            if writer.step == WriterStep::List {
                let usable = self.usable(state, w);
                actions.push(Action::Refer(w, 0));
                let one = (0..SEGMENTS).map(|s| 1 << s).filter(|segment| usable & segment != 0);
                actions.extend(one.map(|segment| Action::Refer(w, segment)));
            } else {
                actions.push(Action::Writer(w));
            }
        }
        for (c, compactor) in state.compactors.iter().enumerate() {
            actions.push(Action::Compactor(c));
            let (_, _, places) = state.first(false);
            // What waits in the trash is moved too.
            let is_kept = state.deletions[0] != Deletion::Collected;
            let is_usable = is_kept && places & compactor.forbidden == 0;
            if compactor.step == CompactorStep::Look && is_usable {
                let one = (0..SEGMENTS).map(|s| 1 << s).filter(|segment| places & segment != 0);
                actions.extend(one.map(|segment| Action::Empty(c, segment)));
            }
        }
        for (c, collector) in state.collectors.iter().enumerate() {
            match collector.step {
                CollectorStep::Begin => {
                    actions.push(Action::Collect(c, true));
                    actions.extend(self.keeps_trash.then_some(Action::Collect(c, false)));
                }
                _ => actions.push(Action::Collector(c)),
            }
        }
        actions.push(Action::Reader);
        for s in 0..=self.writers {
            match (state.deletions[s], state.outcomes[s]) {
                (Deletion::Never, Outcome::Committed(_)) => actions.push(Action::Delete(s)),
                (Deletion::Open, _) => actions.push(Action::Undo(s)),
                (Deletion::Collected, _) if !self.has(Rule::FirstEndWins) => {
                    actions.push(Action::Undo(s));
                }
                _ => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Writer(w) => self.writer(&mut state, w)?,
            Action::Refer(w, segment) => {
                state.writers[w].refers = segment;
                state.writers[w].step = WriterStep::Store;
            }
            Action::Compactor(c) => self.compactor(&mut state, c)?,
            Action::Empty(c, segment) => self.empty(&mut state, c, segment),
            Action::Collector(c) => self.collector(&mut state, c)?,
            Action::Collect(c, ends_open) => {
                state.collectors[c].ends_open = ends_open;
                self.collector(&mut state, c)?;
            }
            Action::Reader => self.reader(&mut state)?,
            Action::Delete(s) => state.deletions[s] = Deletion::Open,
            Action::Undo(s) => state.deletions[s] = Deletion::Undone,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("nothing that can be asked for is lost", |_, state: &State| {
            let lost = |s: usize| state.needs(s) & !state.segments != 0;
            let cannot_read = match state.reader {
                ReaderStep::Reading(places) => places & !state.segments != 0,
                _ => false,
            };
            let collected = |s: usize| state.deletions[s] == Deletion::Collected;
            !cannot_read && (0..3).all(|s| collected(s) || !lost(s))
        })]
    }
}

fn check(protocol: Protocol) -> (usize, bool) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    (checker.unique_state_count(), checker.discoveries().is_empty())
}

#[test]
fn nothing_is_lost_in_any_state() {
    let of = |writers, compactors, collectors, epochs, reader, keeps_trash| Protocol {
        writers,
        compactors,
        collectors,
        epochs,
        reader,
        keeps_trash,
        without: None,
    };
    let small = [
        of(1, 0, 2, 1, true, false),
        of(1, 0, 1, 2, true, true),
        of(2, 0, 1, 2, false, false),
        of(0, 1, 2, 1, true, true),
        of(0, 2, 1, 2, true, false),
        of(1, 1, 1, 2, false, true),
    ];
    for protocol in small {
        let (states, good) = check(protocol);
        eprintln!("{protocol:?}: {states} states");
        assert!(good, "{protocol:?}");
        assert!(states > 10_000);
    }
}

#[test]
fn every_rule_is_needed() {
    use Rule::*;
    let rules = [
        (ReadEpochAgain, 2, 0, false),
        (AvoidCondemned, 2, 0, false),
        (CommittedOnly, 2, 0, false),
        (Fence, 2, 0, false),
        (KeepAborted, 2, 0, false),
        (EndOlder, 2, 0, false),
        (MarkAgain, 2, 0, false),
        (FirstEndWins, 2, 0, false),
        (SpareOpen, 2, 0, false),
        (PinFirst, 0, 0, true),
        (LookAfterSlot, 0, 2, false),
        (SameVersion, 0, 2, false),
        (SpareRead, 0, 1, true),
        (KeepReadMove, 0, 2, true),
    ];
    for (rule, writers, compactors, reader) in rules {
        let without = Some(rule);
        let (collectors, epochs, keeps_trash) = (1, 2, false);
        let protocol =
            Protocol { writers, compactors, collectors, epochs, reader, keeps_trash, without };
        let (states, good) = check(protocol);
        eprintln!("without {rule:?}: lost within {states} states");
        assert!(!good, "nothing is lost without {rule:?}");
    }
}
