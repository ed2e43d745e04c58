//! `banger config show`: each value, and where it is from.

use super::problem::Problem;
use super::{config, output, table, text};
use crate::config::{KEYS, Key, variable};
use crate::near;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

const HEADER: [&str; 4] = ["KEY", "VALUE", "FROM", "WHAT"];

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print each value, and where it is from: the environment, a file and its line, or built in.
    Show(Show),
}

#[derive(Args)]
pub(crate) struct Show {
    /// This one alone; its value is printed.
    key: Option<String>,
    /// Print one JSON document: an array, or for a key an object.
    #[arg(long)]
    json: bool,
}

/// A key's value.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Setting {
    /// The key, with its table's name before a dot.
    key: &'static str,
    /// A text, a number or a truth value, of `file_sync` an array of objects; `null` where it is worked out when it is needed.
    value: Value,
    /// `built in`, a variable of the environment, or a file and its line.
    from: String,
    /// What it is for.
    about: &'static str,
    /// What it may be.
    allowed: &'static str,
}

impl Command {
    /// Does it.
    pub(crate) fn run(self) -> Result<(), Problem> {
        let Command::Show(show) = self;
        if let Some(name) = &show.key {
            let setting = setting(key(name)?);
            return if show.json { output::json(&setting) } else { output::data(&format!("{}\n", shown(&setting))) };
        }
        config().without_effect.iter().for_each(|warning| output::warning(warning));
        let settings: Vec<Setting> = KEYS.iter().map(setting).collect();
        if show.json {
            return output::json(&settings);
        }
        let row = |one: &Setting| vec![one.key.into(), shown(one), text::line(&one.from), one.about.into()];
        table::print(&HEADER, &settings.iter().map(row).collect::<Vec<_>>())
    }
}

fn key(name: &str) -> Result<&'static Key, Problem> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let near = near::nearest(name, KEYS.iter().map(|key| key.name));
        let problem = Problem::missing("no_such_key", format!("there is no key {}", wire::code::shown(name)));
        problem.fix(match near {
            Some(near) => format!("{near} is close; banger config show lists them all"),
            None => "banger config show lists them all".to_owned(),
        })
    })
}

/// What holds: of the environment, the files, or built in.
fn setting(key: &Key) -> Setting {
    let (value, from) = if let Some((name, value)) = key.env.and_then(|name| Some((name, variable(name)?))) {
        (Value::from(value), name.to_owned())
    } else if let Some(set) = config().set.get(key.name) {
        (set.value.clone(), set.place.to_string())
    } else {
        (usual(key), "built in".to_owned())
    };
    Setting { key: key.name, value, from, about: key.about, allowed: key.allowed }
}

/// The built-in value, as a file would have it.
fn usual(key: &Key) -> Value {
    match key.usual {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

/// The value as a cell.
fn shown(setting: &Setting) -> String {
    match &setting.value {
        Value::String(text) => text::line(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
