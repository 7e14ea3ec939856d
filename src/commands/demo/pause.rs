//! Enter between chapters. Lines are read as they come, so that what was typed while something was measured is known to be of
//! that time, and skips nothing.

use std::{
    io::{self, BufRead, Write},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::{Error, Kind, Result};

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Lines that were typed.
pub struct Enter {
    lines: Receiver<io::Result<()>>,
}

impl Enter {
    /// Lines of `input`, up to its end.
    pub fn of(mut input: impl BufRead + Send + 'static) -> Enter {
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            loop {
                let line = match input.read_line(&mut String::new()) {
                    Ok(0) => return,
                    other => other.map(|_| ()),
                };
                let failed = line.is_err();
                // Whoever waited may have gone.
                if send.send(line).is_err() || failed {
                    return;
                }
            }
        });
        Enter { lines }
    }

    /// Asks on `prompt`, and waits for the next line before the chapter `name`; not at all when there is no more input.
    /// `go_on` is asked again and again, and its error ends the wait.
    ///
    /// # Errors
    /// Those of `go_on`, and when the input cannot be read.
    pub fn wait(&self, prompt: &mut impl Write, name: &str, mut go_on: impl FnMut() -> Result<()>) -> Result<()> {
        // What was typed before the question is no answer to it.
        for line in self.lines.try_iter() {
            line.map_err(unreadable)?;
        }
        // Nothing is left to ask when the terminal is gone.
        let _ = write!(prompt, "\n[Enter: {name}]");
        let _ = prompt.flush();
        loop {
            go_on()?;
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => return line.map_err(unreadable),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn unreadable(error: io::Error) -> Error {
    Error::new(Kind::Io, "cannot read a key").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_before_the_question_does_not_answer_it() {
        let (read, mut write) = io::pipe().unwrap();
        let enter = Enter::of(io::BufReader::new(read));
        writeln!(write, "early").unwrap();
        writeln!(write).unwrap();
        thread::sleep(4 * LOOK);
        let (mut looks, mut asked) = (0, Vec::new());
        let go_on = || {
            looks += 1;
            if looks == 3 {
                writeln!(write).unwrap();
            }
            Ok(())
        };
        enter.wait(&mut asked, "a chapter", go_on).unwrap();
        assert!(looks >= 3, "it waited for the line of its own: {looks}");
        // It ends when it is asked to, and does not wait for what cannot come.
        let error = enter.wait(&mut asked, "another", || Err(Error::usage("enough"))).unwrap_err();
        assert!(error.to_string().contains("enough"));
        drop(write);
        enter.wait(&mut asked, "the last", || Ok(())).unwrap();
        assert_eq!(String::from_utf8(asked).unwrap().matches("[Enter: ").count(), 3);
    }
}
