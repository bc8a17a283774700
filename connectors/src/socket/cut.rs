//! Finds lines in chunks that end anywhere. The length of a line is that of its bytes without the
//! line ending, which is one or two bytes.

/// A piece that is cut out of the chunks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A line without its end.
    Line(Vec<u8>),
    /// The beginning of a line that is too long.
    TooLong(Vec<u8>),
    /// The beginning of a line whose connection broke.
    Torn(Vec<u8>),
    /// The number of bytes skipped: the rest of a line that is too long.
    LeftOut(u64),
}

/// Cuts chunks into lines.
pub(super) struct Cutter {
    line: Vec<u8>,
    most: usize,
    /// The number of bytes skipped of a line that is too long.
    left_out: Option<u64>,
}

impl Cutter {
    pub(super) fn new(most: usize) -> Cutter {
        Cutter { line: Vec::new(), most, left_out: None }
    }

    /// Hands on each complete line, and the beginning of each line that is too long.
    pub(super) fn cut(&mut self, chunk: &[u8], mut hand: impl FnMut(Cut)) {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (part, is_whole) = part.strip_suffix(b"\n").map_or((part, false), |part| (part, true));
            self.add(part, &mut hand);
            if is_whole {
                self.end(&mut hand);
            }
        }
    }

    fn add(&mut self, part: &[u8], hand: &mut impl FnMut(Cut)) {
        if let Some(left_out) = &mut self.left_out {
            *left_out += part.len() as u64;
            return;
        }
        // One more byte may be the first of a line ending of two bytes.
        let taken = part.len().min(self.most.saturating_add(1) - self.line.len());
        self.line.extend_from_slice(&part[..taken]);
        let rest = part.len() - taken;
        if rest > 0 || self.line.len() > self.most && self.line.last() != Some(&b'\r') {
            self.leave_out(rest, hand);
        }
    }

    /// Hands on the beginning of a line that is too long; its other bytes and `rest` more are
    /// skipped.
    fn leave_out(&mut self, rest: usize, hand: &mut impl FnMut(Cut)) {
        let mut beginning = std::mem::take(&mut self.line);
        let left_out = beginning.len() - self.most + rest;
        beginning.truncate(self.most);
        self.left_out = Some(left_out as u64);
        hand(Cut::TooLong(beginning));
    }

    fn end(&mut self, hand: &mut impl FnMut(Cut)) {
        if let Some(left_out) = self.left_out.take() {
            hand(Cut::LeftOut(left_out));
            return;
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop_if(|last| *last == b'\r');
        hand(Cut::Line(line));
    }

    /// What arrived without a line ending before the connection ended.
    pub(super) fn last(mut self) -> Option<Cut> {
        if let Some(left_out) = self.left_out {
            return Some(Cut::LeftOut(left_out));
        }
        if self.line.len() > self.most {
            self.line.truncate(self.most);
            return Some(Cut::TooLong(self.line));
        }
        (!self.line.is_empty()).then_some(Cut::Line(self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]], most: usize) -> Vec<Cut> {
        let mut cutter = Cutter::new(most);
        let mut lines = Vec::new();
        chunks.iter().for_each(|chunk| cutter.cut(chunk, |line| lines.push(line)));
        lines.extend(cutter.last());
        lines
    }

    fn line(text: &str) -> Cut {
        Cut::Line(text.as_bytes().to_vec())
    }

    fn too_long(text: &str) -> Cut {
        Cut::TooLong(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_are_cut_wherever_chunks_end() {
        let whole: &[u8] = b"one\n\ntwo\r\nthree";
        let expected = ["one", "", "two", "three"].map(line);
        for at in 0..whole.len() {
            let (left, right) = whole.split_at(at);
            assert_eq!(cut(&[left, right], 5), expected, "cut at {at}");
        }
    }

    #[test]
    fn of_a_line_that_is_too_long_the_beginning_is_kept_once() {
        let expected = [line("a"), too_long("xxxx"), Cut::LeftOut(7), line("b")];
        assert_eq!(cut(&[b"a\nxxx", b"xxxxxx", b"xx\nb\n"], 4), expected);
        assert_eq!(cut(&[b"xxxxx"], 4), [too_long("xxxx"), Cut::LeftOut(1)], "and when it never ends");
    }

    /// With `\r\n` a line had room for one byte less.
    #[test]
    fn the_end_of_a_line_is_no_part_of_its_length() {
        for chunk in 1..8 {
            let cut = |text: &str| cut(&text.as_bytes().chunks(chunk).collect::<Vec<_>>(), 4);
            assert_eq!(cut("xxxx\r\nxxxx\n"), [line("xxxx"), line("xxxx")]);
            assert_eq!(cut("xxxx\r"), [too_long("xxxx")], "nothing follows it");
            assert_eq!(cut("xxxx\rx\na\n"), [too_long("xxxx"), Cut::LeftOut(2), line("a")]);
            assert_eq!(cut("xxxxx\r\na\n"), [too_long("xxxx"), Cut::LeftOut(2), line("a")]);
        }
    }
}
