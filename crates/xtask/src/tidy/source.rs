//! A Rust file as the rules see it: where code is and where comments and
//! literals are. A lexer and matching brackets, no grammar: that is enough to
//! count lines and to find names, it needs no dependency, and it also sees into
//! macros, which a parser leaves alone.

use std::ops::Range;

/// A Rust file, taken apart.
pub(super) struct Source<'a> {
    text: &'a str,
    /// The file without comments and without what literals say, byte for byte as
    /// long as the file. Quotes and line ends are still there.
    code: String,
    literals: Vec<Literal<'a>>,
    tests: Vec<Range<usize>>,
}

/// A string, as written: escapes are not resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Literal<'a> {
    /// Where its text starts, behind the quote.
    pub(super) offset: usize,
    pub(super) text: &'a str,
}

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    /// From the word `fn` to the closing brace.
    pub(super) range: Range<usize>,
}

impl<'a> Source<'a> {
    /// Takes a file apart. Text that is no Rust gives a poor answer, not an error.
    pub(super) fn new(text: &'a str) -> Self {
        let mut lexer = Lexer { text, at: 0, code: text.as_bytes().to_vec(), literals: Vec::new() };
        lexer.run();
        let code = String::from_utf8(lexer.code).expect("only whole characters are blanked");
        let mut source = Self { text, code, literals: lexer.literals, tests: Vec::new() };
        source.tests = source.find_tests();
        source
    }

    /// Returns the file without comments and without what literals say.
    pub(super) fn code(&self) -> &str {
        &self.code
    }

    /// Returns the strings in the order in which they are written.
    pub(super) fn literals(&self) -> &[Literal<'a>] {
        &self.literals
    }

    /// Returns the number of the line, from 1, that has this byte.
    pub(super) fn line(&self, offset: usize) -> usize {
        line_of(self.text, offset)
    }

    /// Says whether the byte belongs to an item that only tests have.
    pub(super) fn is_test(&self, offset: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&offset))
    }

    /// Returns how many lines the file has besides its tests.
    pub(super) fn lines(&self) -> usize {
        let tests = self.tests.iter().map(|range| self.text[range.clone()].lines().count());
        self.text.lines().count() - tests.sum::<usize>()
    }

    /// Returns every identifier and keyword with its place.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        words(&self.code)
    }

    /// Returns the functions that have a body, also those inside others.
    pub(super) fn functions(&self) -> Vec<Function<'_>> {
        let mut functions = Vec::new();
        let mut words = self.words().peekable();
        while let Some((start, word)) = words.next() {
            let Some(&(offset, name)) = words.peek() else { break };
            // `fn(` is a type.
            if word != "fn" || !self.code[start + 2..offset].trim().is_empty() {
                continue;
            }
            let opening = first_outside(&self.code, offset, b"{;");
            if let Some(open) = opening.filter(|&open| self.code.as_bytes()[open] == b'{') {
                let range = start..closing(&self.code, open) + 1;
                functions.push(Function { name, range });
            }
        }
        functions
    }

    fn find_tests(&self) -> Vec<Range<usize>> {
        const MARK: &str = "#[cfg(test)]";
        let items = self.code.match_indices(MARK).filter_map(|(start, _)| {
            let end = first_outside(&self.code, start + MARK.len(), b"{;")?;
            let is_block = self.code.as_bytes()[end] == b'{';
            Some(start..if is_block { closing(&self.code, end) + 1 } else { end + 1 })
        });
        let mut found: Vec<Range<usize>> = Vec::new();
        for range in items {
            if found.last().is_none_or(|last| last.end <= range.start) {
                found.push(range);
            }
        }
        found
    }
}

/// Returns the number of the line, from 1, that has this byte.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Returns every identifier and keyword of masked code with its place.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_word)?;
        let length = code[start..].find(|character| !is_word(character));
        at = length.map_or(code.len(), |length| start + length);
        Some((start, &code[start..at]))
    })
}

/// Returns where the bracket is that closes the one at `open`, or the end of the code.
pub(super) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return offset;
        }
    }
    code.len().saturating_sub(1)
}

/// Returns the first of some bytes at or behind `start` that is in no bracket opened
/// since, or the end of the brackets that `start` is in.
pub(super) fn first_outside(code: &str, start: usize, wanted: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        if depth == 0 && wanted.contains(&byte) {
            return Some(offset);
        }
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth == 0 => return Some(offset),
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

/// Blanks comments and literals, and collects the strings.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
    code: Vec<u8>,
    literals: Vec<Literal<'a>>,
}

impl<'a> Lexer<'a> {
    fn run(&mut self) {
        let mut previous = ' ';
        while let Some(character) = self.rest().chars().next() {
            let begins_word = !is_word(previous);
            previous = character;
            match character {
                '/' if self.rest().starts_with("//") => {
                    let length = self.rest().find('\n').unwrap_or(self.rest().len());
                    self.blank(length);
                }
                '/' if self.rest().starts_with("/*") => self.block_comment(),
                '"' => self.string(0),
                '\'' => self.quote(),
                'r' | 'b' | 'c' if begins_word => self.prefix(),
                _ => self.at += character.len_utf8(),
            }
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Blanks the next bytes except line ends and goes behind them.
    fn blank(&mut self, length: usize) {
        let end = (self.at + length).min(self.text.len());
        for byte in &mut self.code[self.at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        self.at = end;
    }

    fn block_comment(&mut self) {
        let rest = self.rest();
        let (mut depth, mut length) = (1_usize, 2);
        while depth > 0 && length < rest.len() {
            match &rest.as_bytes()[length..] {
                [b'/', b'*', ..] => (depth, length) = (depth + 1, length + 2),
                [b'*', b'/', ..] => (depth, length) = (depth - 1, length + 2),
                _ => length += 1,
            }
        }
        self.blank(length);
    }

    /// Passes over a letter that may start a string: `r"…"`, `br#"…"#`, `b'…'`, `r#name`.
    fn prefix(&mut self) {
        let letters = self.rest().bytes().take_while(|byte| b"rbc".contains(byte)).count();
        let behind = &self.rest()[letters..];
        let hashes = behind.bytes().take_while(|&byte| byte == b'#').count();
        let is_raw = self.rest()[..letters].ends_with('r');
        if letters <= 2 && is_raw && behind[hashes..].starts_with('"') {
            self.at += letters + hashes;
            self.raw_string(hashes);
        } else {
            self.at += letters;
        }
    }

    fn raw_string(&mut self, hashes: usize) {
        let end = format!("\"{}", "#".repeat(hashes));
        let length = self.rest()[1..].find(&end).unwrap_or(self.rest().len() - 1);
        self.keep(length, hashes);
    }

    fn string(&mut self, hashes: usize) {
        let mut escaped = false;
        let length = self.rest()[1..].bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        self.keep(length.unwrap_or(self.rest().len() - 1), hashes);
    }

    /// Collects the string whose opening quote comes next.
    fn keep(&mut self, length: usize, hashes: usize) {
        let offset = self.at + 1;
        self.literals.push(Literal { offset, text: &self.text[offset..offset + length] });
        self.at = offset;
        self.blank(length);
        self.at = (self.at + 1 + hashes).min(self.text.len());
    }

    /// Passes over a character, or over a lifetime's tick.
    fn quote(&mut self) {
        let mut characters = self.rest().char_indices().skip(1);
        let length = match characters.next() {
            // The second character cannot end it: it may be a quote itself.
            Some((_, '\\')) => self.rest()[3..].find('\'').map(|length| length + 4),
            Some(_) => characters.next().filter(|next| next.1 == '\'').map(|(end, _)| end + 1),
            None => None,
        };
        match length {
            Some(length) => self.blank(length),
            None => self.at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let check = |text: &str, expected: &str, literals: &[&str]| {
            let source = Source::new(text);
            assert_eq!(source.code(), expected, "{text}");
            let found: Vec<&str> = source.literals().iter().map(|literal| literal.text).collect();
            assert_eq!(found, literals, "{text}");
            for literal in source.literals() {
                assert!(text[literal.offset..].starts_with(literal.text));
            }
        };
        check("a // b\nc", "a     \nc", &[]);
        check("a /* /* b */ \n */ c", "a            \n    c", &[]);
        check("a(\"b{\") }", "a(\"  \") }", &["b{"]);
        check(r#"a("\"", "\\", b"x")"#, r#"a("  ", "  ", b" ")"#, &["\\\"", "\\\\", "x"]);
        check("r\"a\\\" b", "r\"  \" b", &["a\\"]);
        check("br##\"a\"#\"## b", "br##\"   \"## b", &["a\"#"]);
        check("let r#fn = bar\"x\";", "let r#fn = bar\" \";", &["x"]);
        check("'{' '\\'' b'}' '\\u{7f}' 'ä' x", "         b                  x", &[]);
        check("fn a<'b>(c: &'b str) {}", "fn a<'b>(c: &'b str) {}", &[]);
        check("a(\"open", "a(\"    ", &["open"]);
        check("'", "'", &[]);
        check("a // ä", "a      ", &[]);
    }

    #[test]
    fn functions_are_found() {
        let check = |text: &str, expected: &[(&str, usize)]| {
            let source = Source::new(text);
            let functions = source.functions();
            let found: Vec<(&str, usize)> =
                functions.iter().map(|f| (f.name, text[f.range.clone()].lines().count())).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("fn a() {}", &[("a", 1)]);
        check("fn a();\nfn b()\nwhere\n    T: X,\n{\n}", &[("b", 5)]);
        check("type A = fn(u8) -> u8;", &[]);
        check("fn a(b: [u8; { 1 }]) {\n  fn c() {\n  }\n}\n", &[("a", 4), ("c", 2)]);
        check("fn a() {\n let b = '}'; // }\n}", &[("a", 3)]);
    }

    #[test]
    fn tests_are_set_apart() {
        let check = |text: &str, lines| assert_eq!(Source::new(text).lines(), lines, "{text}");
        check("a\nb\n", 2);
        check("a\n#[cfg(test)]\nmod tests {\n b\n}\n", 1);
        check("a\n#[cfg(test)]\nmod tests;\nb", 2);
        let source = Source::new("a #[cfg(test)] mod b { c } d");
        let tested = source.words().filter(|(offset, _)| source.is_test(*offset));
        let tested: Vec<&str> = tested.map(|(_, word)| word).collect();
        assert_eq!(tested, ["cfg", "test", "mod", "b", "c"]);
    }
}
