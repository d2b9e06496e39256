//! The witness inside a guest, which notices when memory and disks are not from the
//! same instant (`crates/witness`), driven over the serial line.

use std::time::{Duration, Instant};

use crate::{Error, Serial};

/// What a worker of a witness says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has compared all it has since the question, and everything was right.
    Whole,
    /// It has found things from different moments together.
    Torn,
    /// It cannot go on, for another reason: a disk's error, or no answer.
    Failed,
    /// It did not come around in a minute.
    Late,
}

/// The answer of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Testimony {
    /// Its name: `pair/0`, `sweep`.
    pub worker: String,
    /// How it is.
    pub verdict: Verdict,
    /// Where its counter stands, or what is wrong.
    pub details: String,
}

impl Testimony {
    /// Returns where the worker's counter stands; 0 unless it is whole.
    pub fn count(&self) -> u64 {
        self.details.parse().unwrap_or(0)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        let verdict = match words.next()? {
            "ok" => Verdict::Whole,
            "TORN" => Verdict::Torn,
            "FAILED" => Verdict::Failed,
            "late" => Verdict::Late,
            _ => return None,
        };
        let worker = words.next()?.to_owned();
        Some(Self { worker, verdict, details: words.next().unwrap_or_default().to_owned() })
    }
}

impl Serial {
    /// Starts a witness in the background, for instance `pair --disk /dev/vdb`, and
    /// waits until it answers to its name.
    pub fn start_witness(
        &mut self,
        name: &str,
        arguments: &str,
        within: Duration,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        let log = format!("/run/witness-{name}.log");
        let command = format!("witness {arguments} --name {name} </dev/null >{log} 2>&1 &");
        self.run(&command, within)?;
        let socket = format!("test -S /run/witness/{name} && witness query {name}");
        while self.run(&socket, within)?.status != 0 {
            if Instant::now() >= deadline {
                let message = self.run(&format!("cat {log}"), within)?.output;
                return Err(Error::Witness { name: name.to_owned(), message });
            }
        }
        Ok(())
    }

    /// Asks every witness in the guest; each answers once it has compared all it
    /// has. An empty list says that there is none.
    pub fn ask_witnesses(&mut self, within: Duration) -> Result<Vec<Testimony>, Error> {
        let output = self.run("witness query", within)?.output;
        Ok(output.lines().filter_map(Testimony::parse).collect())
    }

    /// Asks every witness, and returns what they say if there is one and all are well.
    ///
    /// # Panics
    ///
    /// If not: made for tests.
    pub fn must_be_whole(&mut self, within: Duration) -> Vec<Testimony> {
        let answers = self.ask_witnesses(within).expect("witnesses can be asked");
        assert!(!answers.is_empty(), "there is no witness in the guest");
        let well = answers.iter().all(|answer| answer.verdict == Verdict::Whole);
        assert!(well, "the guest is not from one moment: {answers:#?}");
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let check = |line, expected: Option<(&str, Verdict, u64)>| {
            let found = Testimony::parse(line);
            let found = found.as_ref().map(|t| (t.worker.as_str(), t.verdict, t.count()));
            assert_eq!(found, expected, "{line}");
        };
        check("ok pair/0 12", Some(("pair/0", Verdict::Whole, 12)));
        check("TORN sweep page 3 of 9: found 1", Some(("sweep", Verdict::Torn, 0)));
        check("FAILED pair does not answer", Some(("pair", Verdict::Failed, 0)));
        check("sh: witness: not found", None);
    }
}
