//! Draws a forest as lines: what came from what, the newest first.
//!
//! ```text
//! @  newest of all              each column is a lane: it waits for what
//! │  …                          the snapshots above came from
//! │ ○  of another branch
//! │ ┆  …                        ┆  something between is not shown
//! ├─╯
//! ○  where they parted
//! │  …
//! ~                             what it came from is gone
//! ```
//!
//! A pure function: it knows neither snapshots nor colours.

use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write;

/// What a node came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing: it is a root.
    Nothing,
    /// Something that is not there any more.
    Gone,
    /// The node with this index.
    Node(usize),
    /// The node with this index, by others that are not shown.
    Distant(usize),
}

impl Origin {
    fn node(self) -> Option<usize> {
        match self {
            Self::Node(at) | Self::Distant(at) => Some(at),
            Self::Nothing | Self::Gone => None,
        }
    }
}

/// A column that is in use: what it waits for, and whether that is distant.
#[derive(Debug, Clone, Copy)]
struct Lane {
    wanted: usize,
    is_distant: bool,
}

/// Draws nodes, which are given by their origins, the newest first. A node is
/// drawn after all that came from it, whatever the order says. `lines` says the
/// mark of a node and its lines of text; at most `limit` nodes are drawn.
pub(crate) fn draw(
    origins: &[Origin],
    limit: usize,
    lines: &dyn Fn(usize) -> (String, Vec<String>),
) -> String {
    let mut text = String::new();
    let mut lanes: Vec<Option<Lane>> = Vec::new();
    for at in order(origins).into_iter().take(limit) {
        let own = join(&mut text, &mut lanes, at);
        let (mark, words) = lines(at);
        let mut words = VecDeque::from(words);
        let head = row(&lanes, |lane| (lane == own).then(|| mark.clone()));
        line(&mut text, &head, &words.pop_front().unwrap_or_default());
        lanes[own] = lane_to(origins[at]);
        for word in words {
            line(&mut text, &row(&lanes, |_| None), &word);
        }
        if origins[at] == Origin::Gone {
            let end = row(&lanes, |lane| (lane == own).then(|| "~".to_owned()));
            line(&mut text, &end, "");
            lanes[own] = None;
        }
        free_last(&mut lanes);
    }
    text
}

/// Returns the lane to what a node came from.
fn lane_to(origin: Origin) -> Option<Lane> {
    match origin {
        Origin::Nothing => None,
        // Nothing is ever drawn that it waits for.
        Origin::Gone => Some(Lane { wanted: usize::MAX, is_distant: false }),
        Origin::Node(wanted) => Some(Lane { wanted, is_distant: false }),
        Origin::Distant(wanted) => Some(Lane { wanted, is_distant: true }),
    }
}

fn free_last(lanes: &mut Vec<Option<Lane>>) {
    while lanes.last().is_some_and(Option::is_none) {
        lanes.pop();
    }
}

/// Returns the nodes in the order in which they are drawn: as they are given,
/// but each after those that came from it.
fn order(origins: &[Origin]) -> Vec<usize> {
    let mut waiting = vec![0_usize; origins.len()];
    for origin in origins.iter().filter_map(|origin| origin.node()) {
        waiting[origin] += 1;
    }
    let (mut is_drawn, mut ordered) = (vec![false; origins.len()], Vec::new());
    let ready = (0..origins.len()).filter(|at| waiting[*at] == 0);
    let mut ready: BinaryHeap<_> = ready.map(std::cmp::Reverse).collect();
    let mut rest = 0..origins.len();
    loop {
        // What is left has come from itself, which only a forger can write.
        let next = ready.pop().map(|next| next.0).or_else(|| rest.find(|at| !is_drawn[*at]));
        let Some(at) = next else { return ordered };
        if std::mem::replace(&mut is_drawn[at], true) {
            continue;
        }
        ordered.push(at);
        if let Some(origin) = origins[at].node() {
            waiting[origin] -= 1;
            if waiting[origin] == 0 {
                ready.push(std::cmp::Reverse(origin));
            }
        }
    }
}

/// Joins the lanes that wait for a node; returns its lane.
fn join(text: &mut String, lanes: &mut Vec<Option<Lane>>, at: usize) -> usize {
    let waits = |lane: &Option<Lane>| lane.is_some_and(|lane| lane.wanted == at);
    let joined: Vec<usize> = (0..lanes.len()).filter(|lane| waits(&lanes[*lane])).collect();
    let [own, others @ ..] = joined.as_slice() else {
        let free = lanes.iter().position(Option::is_none);
        return free.unwrap_or_else(|| {
            lanes.push(None);
            lanes.len() - 1
        });
    };
    let (own, Some(last)) = (*own, others.last()) else { return *own };
    let mut drawn = String::new();
    for (lane, waiting) in lanes.iter().enumerate() {
        let is_between = (own..*last).contains(&lane);
        drawn.push(match (others.contains(&lane), waiting) {
            _ if lane == own => '├',
            (true, _) if lane == *last => '╯',
            (true, _) => '┴',
            (false, Some(_)) if is_between => '┼',
            (false, None) if is_between => '─',
            (false, Some(waiting)) => bar(*waiting),
            (false, None) => ' ',
        });
        drawn.push(if is_between { '─' } else { ' ' });
    }
    line(text, &drawn, "");
    others.iter().for_each(|lane| lanes[*lane] = None);
    free_last(lanes);
    own
}

/// Draws the lanes, some of them as something else.
fn row(lanes: &[Option<Lane>], other: impl Fn(usize) -> Option<String>) -> String {
    let cell = |(at, lane): (usize, &Option<Lane>)| {
        other(at).unwrap_or_else(|| lane.map_or(' ', bar).to_string())
    };
    lanes.iter().enumerate().map(|lane| cell(lane) + " ").collect()
}

fn bar(lane: Lane) -> char {
    if lane.is_distant { '┆' } else { '│' }
}

fn line(text: &mut String, lanes: &str, words: &str) {
    let _ = match words {
        "" => writeln!(text, "{}", lanes.trim_end()),
        words => writeln!(text, "{lanes} {words}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use Origin::{Distant, Gone, Node, Nothing};

    fn drawn(origins: &[Origin]) -> String {
        draw(origins, usize::MAX, &|at| ("○".to_owned(), vec![at.to_string(), String::new()]))
    }

    fn check(origins: &[Origin], expected: &str) {
        assert_eq!(drawn(origins).trim_end(), expected.trim_matches('\n'), "{origins:?}");
    }

    #[test]
    fn trees_are_drawn() {
        check(&[], "");
        check(
            &[Node(1), Nothing],
            "
○  0
│
○  1
",
        );
        check(
            &[Node(2), Node(2), Gone],
            "
○  0
│
│ ○  1
│ │
├─╯
○  2
│
~
",
        );
        check(
            &[Nothing, Nothing],
            "
○  0

○  1
",
        );
        check(
            &[Node(4), Distant(3), Node(4), Node(4), Nothing],
            "
○  0
│
│ ○  1
│ ┆
│ ┆ ○  2
│ ┆ │
│ ○ │  3
│ │ │
├─┴─╯
○  4
",
        );
    }

    #[test]
    fn strange_trees_are_drawn() {
        // A lane in between is crossed.
        check(
            &[Node(3), Node(4), Node(3), Nothing, Nothing],
            "
○  0
│
│ ○  1
│ │
│ │ ○  2
│ │ │
├─┼─╯
○ │  3
  │
  ○  4
",
        );
        // One that was copied before what it came from.
        check(
            &[Nothing, Node(0)],
            "
○  1
│
○  0
",
        );
        // What nobody but a forger writes ends, too.
        check(
            &[Node(0)],
            "
○  0
│
",
        );
    }

    #[test]
    fn the_rest_is_left_open() {
        let three = draw(&[Node(1), Node(2), Nothing], 2, &|at| ("○".into(), vec![at.to_string()]));
        assert_eq!(three, "○  0\n○  1\n");
    }

    /// Reads what a node came from off a drawing, by going down its lane.
    fn origin_in(rows: &[Vec<char>], mut row: usize, mut column: usize) -> Option<usize> {
        let at = |row: usize, column: usize| {
            rows.get(row).and_then(|row| row.get(column)).copied().unwrap_or(' ')
        };
        loop {
            row += 1;
            match at(row, column) {
                '│' | '┆' | '├' | '┼' => {}
                '╯' | '┴' => {
                    while at(row, column) != '├' {
                        column -= 1;
                        assert!("─┼┴├".contains(at(row, column)), "{row} {column}");
                    }
                }
                '○' => return Some(row),
                ' ' | '~' => return None,
                other => panic!("{other} at {row} {column}"),
            }
        }
    }

    #[test]
    fn every_origin_can_be_read_off() {
        for seed in 0..400_u64 {
            let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut roll = |sides: usize| {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                usize::try_from(word >> 33).unwrap() % sides
            };
            let count = 1 + roll(40);
            let near = 1 + roll(count);
            let origins: Vec<Origin> = (0..count)
                .map(|at| match (roll(9), count - at - 1) {
                    (0, _) | (_, 0) => Nothing,
                    (1, _) => Gone,
                    (2, left) => Distant(at + 1 + roll(left)),
                    (_, left) => Node(at + 1 + roll(left.min(near))),
                })
                .collect();
            let text = drawn(&origins);
            let rows: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
            let number = |row: &[char]| {
                let digits = row.iter().rev().take_while(|c| c.is_ascii_digit());
                digits.collect::<Vec<_>>().into_iter().rev().collect::<String>().parse().ok()
            };
            let mut seen = 0;
            for (at, row) in rows.iter().enumerate() {
                let Some(column) = row.iter().position(|c| *c == '○') else { continue };
                let node: usize = number(row).unwrap();
                let origin = origin_in(&rows, at, column).map(|row| number(&rows[row]).unwrap());
                assert_eq!(origin, origins[node].node(), "seed {seed}: node {node}\n{text}");
                seen += 1;
            }
            assert_eq!(seen, count, "seed {seed}\n{text}");
        }
    }
}
