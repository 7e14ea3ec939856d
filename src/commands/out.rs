//! Standard output that may be closed at any time: `mnist-swiglu ... | head` is no error and no panic.

use std::io::{self, Write};

use crate::{Error, Kind, Result};

/// Prints `line` and a line feed on standard output, at once.
///
/// When the reader has gone away the line is dropped and this succeeds: a training run goes on to its checkpoint.
///
/// # Errors
/// [`Kind::Io`] when standard output fails in any other way, such as a full disk.
pub fn print_line(line: &str) -> Result<()> {
    to(&mut io::stdout().lock(), &[line.as_bytes(), b"\n"])
}

/// Prints `bytes` on standard output, at once, as [`print_line`] does.
///
/// # Errors
/// As [`print_line`].
pub fn print_bytes(bytes: &[u8]) -> Result<()> {
    to(&mut io::stdout().lock(), &[bytes])
}

fn to(out: &mut impl Write, parts: &[&[u8]]) -> Result<()> {
    let written = parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush());
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::new(Kind::Io, "cannot write to standard output")
            .because(e)
            .hint("check that the disk it goes to is not full")),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn lines_are_written_whole() {
        let mut out = Vec::new();
        to(&mut out, &[b"a line", b"\n"]).unwrap();
        assert_eq!(out, b"a line\n");
    }

    #[test]
    fn a_reader_that_has_gone_away_is_no_error_and_a_full_disk_is() {
        assert!(to(&mut Fails(io::ErrorKind::BrokenPipe), &[b"x"]).is_ok());
        let full = to(&mut Fails(io::ErrorKind::StorageFull), &[b"x"]).unwrap_err();
        assert_eq!(full.kind(), Kind::Io);
        assert_eq!(full.to_string(), "cannot write to standard output");
    }
}
