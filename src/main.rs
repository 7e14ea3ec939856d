//! Parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;
use mnist_swiglu::{
    Result,
    cli::{Cli, Command},
    commands, data,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The table of contents: each subcommand is one file in `commands/`.
fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => commands::train::run(*args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Data(command) => commands::data::run(command),
        Command::Doctor(args) => {
            let data = data::load(&args.data).map(|dataset| commands::doctor::describe(&dataset));
            commands::doctor::run(&args, data)
        }
        Command::Selftest(args) => commands::selftest::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Demo(args) => commands::demo::run(args),
        Command::Report(args) => commands::report::run(args),
        Command::Completions(args) => commands::completions::run(args),
    }
}
