//! containerd's filter language, which List takes.
//!
//! ```text
//! filter   = "" | selector *( "," selector )
//! selector = path [ operator value ]
//! path     = field *( "." field )
//! field    = 1*( letter | digit | "_" ) | quoted
//! operator = "==" | "!=" | "~="
//! value    = bare | quoted              bare: no comma, space or control character; starts with none of = ! ~ .
//! quoted   = Go string in "", and after "~=" also in // or ||
//! ```
//!
//! A filter matches where all its selectors do, a list of filters where any does; an empty list and an empty filter
//! match everything. A selector without operator asks whether the field is present. An absent field is unequal to every
//! value and matches a regular expression as the empty text would. Spaces may stand before a field, an operator or a
//! value. Regular expressions see bytes, not characters: `.` is one byte and classes are ASCII, as mostly in Go.
//!
//! Quoted text may spell any bytes (`"\xff"`), so values are bytes here.

use regex::bytes::{Regex, RegexBuilder};

/// Filters per call. containerd sends one.
const MAX_FILTERS: usize = 128;
/// Bytes of all filters of a call.
const MAX_FILTERS_LEN: usize = 64 << 10;
/// Regular expressions per call, each of up to `MAX_REGEX_LEN` once compiled.
const MAX_REGEXES: usize = 32;
/// Bytes of memory of one compiled regular expression, and of its cache.
const MAX_REGEX_LEN: usize = 256 << 10;

/// The filters of a call cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FilterError {
    #[error("more than {MAX_FILTERS} filters")]
    TooMany,
    #[error("filters of more than {MAX_FILTERS_LEN} bytes")]
    TooLong,
    #[error("more than {MAX_REGEXES} regular expressions")]
    TooManyRegexes,
    #[error("byte {at}: expected {expected}")]
    Syntax { at: usize, expected: &'static str },
    #[error("byte {at}: not a regular expression, or too large a one")]
    Regex { at: usize },
}

/// What filters look at.
pub(crate) trait Fields {
    /// The value of the field at `path` (never empty), or none if it is absent.
    fn field(&self, path: &[Vec<u8>]) -> Option<&[u8]>;
}

/// The filters of one call.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<Vec<u8>>,
    condition: Condition,
}

#[derive(Debug)]
enum Condition {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Matches(Regex),
}

impl Filters {
    pub(crate) fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        if filters.len() > MAX_FILTERS {
            return Err(FilterError::TooMany);
        }
        if filters.iter().map(|filter| filter.as_ref().len()).sum::<usize>() > MAX_FILTERS_LEN {
            return Err(FilterError::TooLong);
        }
        let mut regexes = 0;
        let parse = |filter: &S| Parser { text: filter.as_ref(), at: 0, regexes: &mut regexes }.filter();
        filters.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn matches(&self, object: &impl Fields) -> bool {
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(|s| s.matches(object)))
    }
}

impl Selector {
    fn matches(&self, object: &impl Fields) -> bool {
        let value = object.field(&self.path);
        match &self.condition {
            Condition::Present => value.is_some(),
            Condition::Equal(wanted) => value == Some(wanted),
            Condition::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Condition::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }
}

/// Reads one filter from left to right; `at` is always on a character boundary.
struct Parser<'a> {
    text: &'a str,
    at: usize,
    regexes: &'a mut usize,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.next() {
                None => return Ok(selectors),
                Some(',') => {}
                Some(_) => return Err(self.expected("a comma or the end")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, condition: Condition::Present });
        }
        self.skip_spaces();
        let operator = self.take_while(|c| matches!(c, '=' | '!' | '~')).to_owned();
        let condition = match operator.as_str() {
            "==" => Condition::Equal(self.value(false)?),
            "!=" => Condition::NotEqual(self.value(false)?),
            "~=" => self.regex()?,
            _ => return Err(self.expected("one of == != ~=")),
        };
        Ok(Selector { path, condition })
    }

    fn field(&mut self) -> Result<Vec<u8>, FilterError> {
        self.skip_spaces();
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let field = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').as_bytes().to_vec();
        if field.is_empty() { Err(self.expected("a field")) } else { Ok(field) }
    }

    fn value(&mut self, for_regex: bool) -> Result<Vec<u8>, FilterError> {
        self.skip_spaces();
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') if for_regex => self.quoted(),
            None | Some('/' | '|' | ',' | '.' | '=' | '!' | '~') => Err(self.expected("a value")),
            Some(_) => {
                let bare = |c: char| c != ',' && !c.is_whitespace() && !c.is_control();
                let value = self.take_while(bare).as_bytes().to_vec();
                if value.is_empty() { Err(self.expected("a value")) } else { Ok(value) }
            }
        }
    }

    fn regex(&mut self) -> Result<Condition, FilterError> {
        let at = self.at;
        *self.regexes += 1;
        if *self.regexes > MAX_REGEXES {
            return Err(FilterError::TooManyRegexes);
        }
        let pattern = String::from_utf8(self.value(true)?).map_err(|_| FilterError::Regex { at })?;
        let regex = RegexBuilder::new(&pattern)
            .unicode(false)
            .size_limit(MAX_REGEX_LEN)
            .dfa_size_limit(MAX_REGEX_LEN)
            .nest_limit(64)
            .build();
        regex.map(Condition::Matches).map_err(|_| FilterError::Regex { at })
    }

    /// A Go string, its quote next. The quote itself may be escaped, no other quote may.
    fn quoted(&mut self) -> Result<Vec<u8>, FilterError> {
        let Some(quote) = self.next() else { return Err(self.expected("a quote")) };
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n' | '\0') => return Err(self.expected("the end of the quoted text")),
                Some(c) if c == quote => return Ok(bytes),
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => push(&mut bytes, c),
            }
        }
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        match self.next() {
            Some('a') => bytes.push(0x07),
            Some('b') => bytes.push(0x08),
            Some('f') => bytes.push(0x0c),
            Some('n') => bytes.push(b'\n'),
            Some('r') => bytes.push(b'\r'),
            Some('t') => bytes.push(b'\t'),
            Some('v') => bytes.push(0x0b),
            Some('\\') => bytes.push(b'\\'),
            Some(c) if c == quote => push(bytes, c),
            Some('x') => bytes.push(self.byte_of_digits(2, 16, 0)?),
            Some(c @ '0'..='7') => {
                let first = c.to_digit(8).expect("the pattern is an octal digit");
                bytes.push(self.byte_of_digits(2, 8, first)?);
            }
            Some('u') => self.code_point(4, bytes)?,
            Some('U') => self.code_point(8, bytes)?,
            _ => return Err(self.expected("an escape sequence")),
        }
        Ok(())
    }

    fn byte_of_digits(&mut self, count: usize, radix: u32, first: u32) -> Result<u8, FilterError> {
        let value = self.digits(count, radix, first)?;
        u8::try_from(value).map_err(|_| self.expected("a byte"))
    }

    fn code_point(&mut self, count: usize, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let value = self.digits(count, 16, 0)?;
        if value > u32::from(char::MAX) {
            return Err(self.expected("a code point"));
        }
        // Like Go, a surrogate becomes the replacement character.
        push(bytes, char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }

    /// `count` digits after the value `first`; at most eight in all, so a `u32` holds them.
    fn digits(&mut self, count: usize, radix: u32, first: u32) -> Result<u32, FilterError> {
        let mut value = first;
        for _ in 0..count {
            match self.next().and_then(|c| c.to_digit(radix)) {
                Some(digit) => value = value * radix + digit,
                None => return Err(self.expected("a digit")),
            }
        }
        Ok(value)
    }

    fn skip_spaces(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn expected(&self, expected: &'static str) -> FilterError {
        FilterError::Syntax { at: self.at, expected }
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests;
