//! Agents that misbehave: each costs an error within its deadline, and no more.

use std::io::{Read, Write};
use std::thread::{JoinHandle, spawn};

use super::*;

const SOON: Duration = Duration::from_millis(150);
const LATER: Duration = Duration::from_secs(20);

/// Reads one line of ours; `None` when we have gone.
fn line(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    Some(line)
}

/// An agent that answers every sync well, and everything else with `answer`.
fn agent(answer: &'static [u8]) -> (Agent, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = spawn(move || {
        while let Some(line) = line(&mut theirs) {
            let text = String::from_utf8_lossy(&line);
            let id = text.split("\"id\":").nth(1).and_then(|rest| rest.split('}').next());
            let sent = match id {
                Some(id) => {
                    let noise = b"{\"error\": {\"desc\": \"stray\"}}\n{\"return\": 1}\nhalf a li";
                    theirs.write_all(noise).unwrap();
                    theirs.write_all(format!("{{\"return\": {id}}}\n").as_bytes()).unwrap();
                    let own = [&[DELIMITER], format!("{{\"return\": {id}}}\n").as_bytes()].concat();
                    theirs.write_all(&own)
                }
                None => theirs.write_all(answer),
            };
            if sent.is_err() {
                return;
            }
        }
    });
    (Agent::over(ours), thread)
}

/// Asks how many were frozen by an agent with that answer.
fn check(answer: &'static [u8], expected: Result<u64, &str>) {
    let (mut agent, thread) = agent(answer);
    let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
    let limit = if expected == Err("in time") { SOON } else { LATER };
    match (agent.freeze(limit), expected) {
        (Ok(count), Ok(expected)) => assert_eq!(count, expected, "{shown}"),
        (Err(error), Err(words)) => {
            assert!(error.to_string().contains(words), "{shown}: {error}");
        }
        (got, _) => panic!("{shown}: {got:?}"),
    }
    drop(agent);
    thread.join().unwrap();
}

#[test]
fn answers_of_every_kind_are_a_number_or_an_error() {
    check(b"{\"return\": 3}\n", Ok(3));
    check(b"{\"return\": -1}\n", Err("how many"));
    check(b"{\"return\": {}}\n", Err("how many"));
    check(b"{\"return\": 1e99}\n", Err("how many"));
    check(
        b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no \\u001b[31m\"}}\n",
        Err("\\u{1b}"),
    );
    check(b"{\"error\": 7}\n", Err("does not say why"));
    check(b"{}\n", Err("no result"));
    check(b"garbage\n", Err("no JSON"));
    check(b"\xff\xff\x00\n", Err("no JSON"));
    check(b"", Err("in time"));
    check(b"{\"return\": 1", Err("in time"));
    check([b'['; 4096].as_slice(), Err("in time"));
    check(&[b'x'; MAX_LINE + 5], Err("without end"));
}

#[test]
fn a_flood_ends() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = spawn(move || {
        let piece = b"{\"return\": 1}\n".repeat(1000);
        let mut sent = 0;
        while sent < 10 << 20 && theirs.write_all(&piece).is_ok() {
            sent += piece.len();
        }
        sent
    });
    let mut agent = Agent::over(ours);
    let error = agent.sync(LATER).unwrap_err().to_string();
    assert!(error.contains("not what it was asked"), "{error}");
    drop(agent);
    assert!(flood.join().unwrap() < 10 << 20, "it was not taken in as a whole");
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut client = Agent::over(ours);
    assert!(client.sync(SOON).is_err(), "nobody answers");
    let first = line(&mut theirs).unwrap();
    let late = spawn(move || {
        for asked in [first, line(&mut theirs).unwrap()] {
            let asked = String::from_utf8_lossy(&asked).into_owned();
            let id = asked.split("\"id\":").nth(1).unwrap().split('}').next().unwrap();
            let answer = format!("{{\"return\": {id}}}\n");
            theirs.write_all(&[&[DELIMITER], answer.as_bytes()].concat()).unwrap();
        }
        line(&mut theirs).unwrap();
        theirs.write_all(b"{\"return\": \"thawed\"}\n").unwrap();
    });
    assert!(!client.is_frozen(LATER).unwrap());
    late.join().unwrap();
}

#[test]
fn an_agent_that_dies_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = Agent::over(ours).is_frozen(LATER).unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn a_thaw_can_be_asked_for_ahead() {
    let (mut agent, thread) = agent(b"{\"return\": 2}\n");
    assert_eq!(agent.freeze(LATER).unwrap(), 2);
    agent.ask_thaw().unwrap();
    assert_eq!(agent.thawed(LATER).unwrap(), 2);
    drop(agent);
    thread.join().unwrap();
}
