//! The protocol of sessions, deletion, collection and pins as a model that is
//! checked in all its states, for several small sets of writers, collectors, a
//! reader, and a user who deletes and undoes. Each rule is left out once, and then something
//! must be lost.

use stateright::{Checker, Model, Property};

/// Segment 0 belongs to the first snapshot, segment 1 + w to writer w.
type Segments = u8;

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CollectorStep {
    Begin,
    /// Reading deletions, slots, outcomes; then to condemn or to finalize.
    Mark {
        read: u8,
        again: bool,
    },
    ListSegments,
    PutEpoch,
    EndSessions,
    EndDeletions,
    Delete,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Collector {
    step: CollectorStep,
    epoch: u8,
    /// What the mark has read so far.
    deleted: u8,
    pinned: u8,
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
    Reading,
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
    writers: Vec<Writer>,
    collectors: Vec<Collector>,
    reader: ReaderStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Writer(usize),
    /// A writer chooses what to refer to beside its own segment.
    Refer(usize, Segments),
    Collector(usize),
    Reader,
    Delete(usize),
    Undo(usize),
}

struct Protocol {
    writers: usize,
    collectors: usize,
    epochs: u8,
    reader: bool,
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
            .fold(0, |mask, s| mask | 1 << s);
        let owned = if self.has(Rule::CommittedOnly) { committed } else { !(2 << w) };
        state.segments & owned & !state.writers[w].forbidden
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
                for deletion in &mut state.deletions {
                    if *deletion == Deletion::Open {
                        *deletion = Deletion::Collected;
                    }
                }
                collector.step = CollectorStep::Mark { read: 0, again: true };
            }
            CollectorStep::Delete if state.segments & collector.doomed != 0 => {
                let present = state.segments & collector.doomed;
                state.segments &= !(1 << present.trailing_zeros());
            }
            CollectorStep::Delete => {
                state.epochs[usize::from(collector.epoch)].done = true;
                collector.step = CollectorStep::Over;
            }
            CollectorStep::Over => {
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

    /// One of the three reads of a mark, and what follows the last.
    fn mark(&self, state: &mut State, collector: &mut Collector, read: u8, again: bool) {
        let spares_open = again && self.has(Rule::SpareOpen);
        let gone =
            |d: &Deletion| *d == Deletion::Collected || (*d == Deletion::Open && !spares_open);
        match read {
            0 => {
                let deleted = state.deletions.iter().enumerate().filter(|(_, d)| gone(d));
                collector.deleted = deleted.fold(0, |mask, (s, _)| mask | 1 << s);
            }
            1 => {
                let registered =
                    matches!(state.reader, ReaderStep::Registered | ReaderStep::Reading);
                collector.pinned = u8::from(registered);
            }
            _ => {
                let spared = !collector.deleted | collector.pinned;
                collector.needed = (0..3)
                    .filter(|s| spared & 1 << s != 0)
                    .map(|s| match state.outcomes[s] {
                        Outcome::Committed(refers) => refers,
                        Outcome::None | Outcome::Aborted => 0,
                    })
                    .fold(0, |all, refers| all | refers);
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
            None => {
                collector.needed = 0;
                collector.step = CollectorStep::EndDeletions;
            }
        }
    }

    fn reader(&self, state: &mut State) -> Option<()> {
        let there = matches!(state.deletions[0], Deletion::Never | Deletion::Undone);
        state.reader = match state.reader {
            ReaderStep::Begin if self.has(Rule::PinFirst) => ReaderStep::Registered,
            ReaderStep::Begin if there => ReaderStep::Looked,
            ReaderStep::Looked => ReaderStep::Reading,
            ReaderStep::Registered if there => ReaderStep::Reading,
            ReaderStep::Begin | ReaderStep::Registered | ReaderStep::Reading => ReaderStep::Over,
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
            deleted: 0,
            pinned: 0,
            needed: 0,
            doomed: 0,
        };
        vec![State {
            epochs: vec![Epoch { condemned: 0, decided: Some(0), done: true }],
            segments: 1,
            outcomes: [Outcome::Committed(1), Outcome::None, Outcome::None],
            deletions: [Deletion::Never; 3],
            writers: vec![writer; self.writers],
            collectors: vec![collector; self.collectors],
            reader: if self.reader { ReaderStep::Begin } else { ReaderStep::Over },
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (w, writer) in state.writers.iter().enumerate() {
            if writer.step == WriterStep::List {
                let usable = self.usable(state, w);
                actions.push(Action::Refer(w, 0));
                let one = (0..3).map(|s| 1 << s).filter(|segment| usable & segment != 0);
                actions.extend(one.map(|segment| Action::Refer(w, segment)));
            } else {
                actions.push(Action::Writer(w));
            }
        }
        actions.extend((0..state.collectors.len()).map(Action::Collector));
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
            Action::Collector(c) => self.collector(&mut state, c)?,
            Action::Reader => self.reader(&mut state)?,
            Action::Delete(s) => state.deletions[s] = Deletion::Open,
            Action::Undo(s) => state.deletions[s] = Deletion::Undone,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("nothing that can be asked for is lost", |_, state: &State| {
            let lost = |s: usize| match state.outcomes[s] {
                Outcome::Committed(refers) => refers & !state.segments != 0,
                Outcome::None | Outcome::Aborted => false,
            };
            let reading = state.reader == ReaderStep::Reading;
            (0..3).all(|s| {
                let collected = state.deletions[s] == Deletion::Collected;
                (collected && !(s == 0 && reading)) || !lost(s)
            })
        })]
    }
}

fn check(protocol: Protocol) -> (usize, bool) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    (checker.unique_state_count(), checker.discoveries().is_empty())
}

#[test]
fn nothing_is_lost_in_any_state() {
    let small = [(1, 2, 1, true), (1, 1, 2, true), (2, 1, 2, false)];
    for (writers, collectors, epochs, reader) in small {
        let protocol = Protocol { writers, collectors, epochs, reader, without: None };
        let (states, good) = check(protocol);
        eprintln!("{writers} writers, {collectors} collectors, {epochs} epochs: {states} states");
        assert!(good);
        assert!(states > 10_000);
    }
}

#[test]
fn every_rule_is_needed() {
    use Rule::*;
    let rules = [
        ReadEpochAgain,
        AvoidCondemned,
        CommittedOnly,
        Fence,
        KeepAborted,
        EndOlder,
        MarkAgain,
        FirstEndWins,
        SpareOpen,
        PinFirst,
    ];
    for rule in rules {
        let reader = rule == PinFirst;
        let writers = if reader { 0 } else { 2 };
        let protocol = Protocol { writers, collectors: 1, epochs: 2, reader, without: Some(rule) };
        let (states, good) = check(protocol);
        eprintln!("without {rule:?}: lost within {states} states");
        assert!(!good, "nothing is lost without {rule:?}");
    }
}
