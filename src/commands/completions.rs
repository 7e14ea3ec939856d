//! `completions SHELL`: a completion script on standard output, made from the flags themselves.

use clap::CommandFactory;

use super::out;
use crate::{
    Result,
    cli::{Cli, CompletionsArgs},
};

/// Prints the completion script for the shell asked for.
///
/// # Errors
/// [`crate::Kind::Io`] when standard output fails; a closed pipe is fine.
pub fn run(args: CompletionsArgs) -> Result<()> {
    out::print_bytes(&script(args.shell))
}

/// Into memory first: clap_complete panics when its writer fails.
fn script(shell: clap_complete::Shell) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut command = Cli::command();
    let name = command.get_name().to_string();
    clap_complete::generate(shell, &mut command, name, &mut bytes);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_completes_every_subcommand() {
        for shell in clap_complete::Shell::value_variants() {
            let text = String::from_utf8(script(*shell)).unwrap();
            for subcommand in Cli::command().get_subcommands() {
                let name = subcommand.get_name();
                assert!(text.contains(name), "{shell}: {name}");
            }
        }
    }
}
