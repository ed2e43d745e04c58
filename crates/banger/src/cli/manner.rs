//! How banger speaks with whoever calls it: how much it says, in which colours, and whether it may ask.

use super::output;
use super::problem::Problem;
use super::progress::Style;
use crate::api::client;
use clap::{ArgAction, Args, ColorChoice, ValueEnum};
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, IsTerminal};
use std::sync::OnceLock;

static MANNER: OnceLock<Manner> = OnceLock::new();

/// What every command takes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Every command's options")]
pub(crate) struct Manner {
    /// Say more: stages with their times, and what is asked of bangerd under which id. Twice: each call of bangerd's to the
    /// root helper too, with its time.
    #[arg(short, long, global = true, action = ArgAction::Count, overrides_with = "quiet")]
    verbose: u8,
    /// Say less: no stages, no hints; what lists VMs or changes them prints names alone.
    #[arg(short, long, global = true, overrides_with = "verbose")]
    quiet: bool,
    /// Whether words are coloured [default: auto, and then as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM say].
    #[arg(long, value_name = "WHEN", global = true)]
    color: Option<When>,
    /// Ask nothing: where a question would be asked the command fails, and says which flag answers it.
    #[arg(long, global = true)]
    no_input: bool,
    /// Ask nothing: the answer is yes.
    #[arg(short, long, global = true)]
    yes: bool,
}

/// When words are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal.
    Auto,
    /// On a pipe too.
    Always,
    /// Nowhere.
    Never,
}

/// What a colour says; the words say it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Done, as it should be.
    Green,
    /// Look at it.
    Yellow,
    /// It failed.
    Red,
    /// Can be skipped.
    Dim,
}

impl Manner {
    /// That of a command line that could not be parsed, as far as it can be seen.
    pub(crate) fn guessed(words: impl Iterator<Item = OsString>) -> Manner {
        let color = match choice(words) {
            ColorChoice::Always => Some(When::Always),
            ColorChoice::Never => Some(When::Never),
            ColorChoice::Auto => None,
        };
        Manner { color, ..Manner::default() }
    }

    /// From now on.
    pub(crate) fn take(self) {
        if self.verbose > 1 {
            client::tell_helper_calls(super::progress::helper_call);
        }
        let _ = MANNER.set(self);
    }

    /// The words that ask for the same of another `banger`.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let color = self.color.and_then(|when| when.to_possible_value());
        let color = color.map(|when| format!("--color={}", when.get_name()));
        let verbose = std::iter::repeat_n("-v".to_owned(), self.verbose.into());
        let quiet = self.quiet.then(|| "-q".to_owned());
        let no_input = self.no_input.then(|| "--no-input".to_owned());
        let yes = self.yes.then(|| "--yes".to_owned());
        verbose.chain(quiet).chain(color).chain(no_input).chain(yes).map(OsString::from).collect()
    }
}

/// That of this process.
pub(crate) fn manner() -> &'static Manner {
    MANNER.get_or_init(Manner::default)
}

/// Whether names alone are wanted, and no hints.
pub(crate) fn is_quiet() -> bool {
    manner().quiet
}

/// Whether every question has its answer: yes.
pub(crate) fn yes() -> bool {
    manner().yes
}

/// Whether more is wanted than usual.
pub(crate) fn is_verbose() -> bool {
    manner().verbose > 0
}

/// Whether calls to the root helper are to be told.
pub(crate) fn traces() -> bool {
    manner().verbose > 1
}

/// How stages are told where neither flag nor configuration says it.
pub(crate) fn style() -> Style {
    match manner() {
        Manner { quiet: true, .. } => Style::None,
        Manner { verbose: 0, .. } => Style::Auto,
        _ => Style::Plain,
    }
}

/// Asks a person; `None` where nobody may be asked or nobody is there. An end of the input is an empty answer.
pub(crate) fn ask(question: &str) -> Option<String> {
    if !may_ask() {
        return None;
    }
    output::ours(question);
    let mut answer = String::new();
    // What can't be read is no yes.
    let _ = io::stdin().lock().read_line(&mut answer);
    Some(answer)
}

/// Whether a person may be asked, and is there.
pub(crate) fn may_ask() -> bool {
    !manner().no_input && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Whether no question may be asked though somebody is there.
pub(crate) fn no_input() -> bool {
    manner().no_input
}

/// The question that nobody may be asked; `flag` answers it.
pub(crate) fn unasked(whether: &str, flag: &str) -> Problem {
    Problem::usage(format!("nobody can be asked whether {whether}")).fix(flag)
}

/// The text in a colour, where standard error shows colours.
pub(crate) fn beside(paint: Paint, text: &str) -> String {
    painted(paint, text, io::stderr().is_terminal())
}

/// The text in a colour, where standard output shows colours.
pub(crate) fn data(paint: Paint, text: &str) -> String {
    painted(paint, text, io::stdout().is_terminal())
}

fn painted(paint: Paint, text: &str, on_terminal: bool) -> String {
    let code = match paint {
        Paint::Green => "32",
        Paint::Yellow => "33",
        Paint::Red => "31",
        Paint::Dim => "2",
    };
    match has_colour(manner().color, on_terminal, |name| env::var_os(name)) {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// The flag goes over the environment, and that over what the stream is.
fn has_colour(flag: Option<When>, on_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    match flag {
        Some(When::Always) => true,
        Some(When::Never) => false,
        _ if set("NO_COLOR").is_some() => false,
        _ if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        _ if set("CLICOLOR").is_some_and(|value| value == "0") => false,
        _ => on_terminal && set("TERM").is_none_or(|term| term != "dumb"),
    }
}

/// The parser's own choice, before it has parsed: help and mistakes are coloured as all else.
pub(crate) fn choice(words: impl Iterator<Item = OsString>) -> ColorChoice {
    let words: Vec<OsString> = words.take_while(|word| word != "--").collect();
    let last = words.iter().enumerate().rev().find_map(|(at, word)| match word.to_str()? {
        "--color" => words.get(at + 1).and_then(|word| word.to_str()),
        word => word.strip_prefix("--color="),
    });
    match last {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ if env::var_os("TERM").as_deref() == Some(OsStr::new("dumb")) => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_over_the_environment_and_that_over_the_stream() {
        let with = |flag, on_terminal, set: &[(&str, &str)]| {
            let variable = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            has_colour(flag, on_terminal, variable)
        };
        for (want, flag, on_terminal, set) in [
            (true, None, true, &[][..]),
            (false, None, false, &[]),
            (false, None, true, &[("NO_COLOR", "1")]),
            (true, None, true, &[("NO_COLOR", "")]),
            (false, None, true, &[("CLICOLOR", "0")]),
            (true, None, true, &[("CLICOLOR", "1")]),
            (false, None, false, &[("CLICOLOR", "1")]),
            (true, None, false, &[("CLICOLOR_FORCE", "1")]),
            (false, None, false, &[("CLICOLOR_FORCE", "0")]),
            (false, None, true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]),
            (false, None, true, &[("TERM", "dumb")]),
            (true, Some(When::Always), false, &[("NO_COLOR", "1")]),
            (false, Some(When::Never), true, &[("CLICOLOR_FORCE", "1")]),
            (false, Some(When::Auto), true, &[("NO_COLOR", "1")]),
        ] {
            assert_eq!(with(flag, on_terminal, set), want, "{flag:?} {on_terminal} {set:?}");
        }
    }

    #[test]
    fn words_ask_for_the_same() {
        let manner = Manner { verbose: 2, quiet: false, color: Some(When::Never), no_input: true, yes: true };
        assert_eq!(manner.words(), ["-v", "-v", "--color=never", "--no-input", "--yes"]);
        assert!(Manner::default().words().is_empty());
    }

    #[test]
    fn the_parser_takes_the_last_word_on_colours() {
        let choice = |line: &str| choice(line.split(' ').map(OsString::from));
        assert_eq!(choice("banger --color=always vm list --color never"), ColorChoice::Never);
        assert_eq!(choice("banger vm run --color always -- x --color never"), ColorChoice::Always);
        assert_eq!(choice("banger --color"), ColorChoice::Auto);
    }
}
