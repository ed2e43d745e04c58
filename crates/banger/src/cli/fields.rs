//! `--json=FIELD,…`: some of a document's fields alone. Which there are its schema says, before anything is done.

use super::problem::Problem;
use super::schema;
use crate::near;
use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Stands for a `--json` that was not given: no field's name.
const NONE: &str = "-";

static CHOSEN: OnceLock<BTreeSet<String>> = OnceLock::new();

/// The command and all below it, with a `--json` that takes fields wherever there is one.
pub(crate) fn with_fields(command: Command) -> Command {
    let argument = |argument: Arg| if argument.get_id() == "json" { taking(argument) } else { argument };
    command.mut_args(argument).mut_subcommands(with_fields)
}

/// It stays a flag for who asks for its value: fields mean that JSON is wanted.
fn taking(json: Arg) -> Arg {
    json.action(ArgAction::Set)
        .value_name("FIELD,…")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("")
        .default_value(NONE)
        .hide_default_value(true)
        .value_parser(ValueParser::from(|text: &str| Ok::<bool, String>(text != NONE)))
}

/// The command's own matches, below those of the commands that it belongs to.
fn innermost(mut matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let mut path = Vec::new();
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name);
        matches = inner;
    }
    (path, matches)
}

/// The command's name, with those of the commands that it belongs to before it.
pub(crate) fn path(matches: &ArgMatches) -> String {
    innermost(matches).0.join(" ")
}

/// Whether a command line asks for JSON; errors are JSON then too.
pub(crate) fn wants_json(matches: &ArgMatches) -> bool {
    matches!(innermost(matches).1.try_get_one::<bool>("json"), Ok(Some(true)))
}

/// Takes the fields that a command line names, and looks whether its command's document has them.
pub(crate) fn take(matches: &ArgMatches) -> Result<(), Problem> {
    let (path, matches) = innermost(matches);
    let given = matches.try_get_raw("json").ok().flatten();
    let given = given.filter(|_| matches.value_source("json") == Some(ValueSource::CommandLine));
    let text: String = given.into_iter().flatten().map(|text| text.to_string_lossy()).collect();
    let wanted: BTreeSet<String> =
        text.split(',').map(str::trim).filter(|field| !field.is_empty()).map(str::to_owned).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let is_plan = matches!(path.as_slice(), ["vm", "run" | "create"] | ["run"])
        && matches.get_one::<bool>("dry_run").is_some_and(|is| *is);
    let known = if is_plan { of("vm.plan") } else { of(&document(&path)) };
    for field in &wanted {
        check(field, &known, &path)?;
    }
    let _ = CHOSEN.set(wanted);
    Ok(())
}

/// The name of what a command prints, of its old and short spellings too.
fn document(path: &[&str]) -> String {
    match path {
        ["ps"] | ["vm", "ps"] => "vm.list".to_owned(),
        ["run"] | ["try"] => "vm.run".to_owned(),
        ["vm", "workspace"] => "vm.workspace.push".to_owned(),
        _ => path.join("."),
    }
}

fn check(field: &str, known: &BTreeSet<String>, path: &[&str]) -> Result<(), Problem> {
    if known.contains(field) {
        return Ok(());
    }
    let command = path.join(" ");
    if known.is_empty() {
        return Err(Problem::usage(format!("banger {command} prints no document that has fields")).fix("--json"));
    }
    let problem = Problem::usage(format!("what banger {command} prints has no field {}", wire::code::shown(field)));
    let all = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(match near::nearest(field, known.iter().map(String::as_str)) {
        Some(near) => problem.fix(format!("{near} is close; there are {all}")),
        None => problem.fix(format!("there are {all}")),
    })
}

/// The fields of that document's objects.
fn of(document: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Some(schema) = schema::of_document(document) {
        objects(&schema, &schema, &mut found);
    }
    found
}

/// A document is an object, an array of such, or either of these.
fn objects(schema: &Value, root: &Value, found: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.extend(properties.keys().cloned());
    }
    if let Some(place) = schema["$ref"].as_str().and_then(|place| place.strip_prefix('#'))
        && let Some(there) = root.pointer(place)
    {
        objects(there, root, found);
    }
    if schema["type"] == "array" {
        objects(&schema["items"], root, found);
    }
    schema["anyOf"].as_array().into_iter().flatten().for_each(|one| objects(one, root, found));
}

/// The word that asks for JSON, and for the same fields.
pub(crate) fn word() -> String {
    match CHOSEN.get() {
        Some(fields) => format!("--json={}", fields.iter().map(String::as_str).collect::<Vec<_>>().join(",")),
        None => "--json".to_owned(),
    }
}

/// Of that value the fields that were asked for; all of it where none was.
pub(crate) fn chosen(value: Value) -> Value {
    match CHOSEN.get() {
        Some(fields) => only(value, fields),
        None => value,
    }
}

/// Whether fields were asked for.
pub(crate) fn are_chosen() -> bool {
    CHOSEN.get().is_some()
}

fn only(value: Value, fields: &BTreeSet<String>) -> Value {
    match value {
        Value::Array(all) => all.into_iter().map(|one| only(one, fields)).collect(),
        Value::Object(all) => {
            Value::Object(all.into_iter().filter(|(name, _)| fields.contains(name)).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_document_of_a_command_has_fields() {
        for (document, field) in [
            ("vm.list", "network"),
            ("vm.show", "network"),
            ("vm.stop", "warnings"),
            ("vm.run", "own_us"),
            ("vm.prune", "freed_bytes"),
            ("doctor", "checks"),
            ("config.show", "from"),
            ("image.show", "digest"),
            ("helper.list", "taps"),
            ("helper.probe", "end"),
        ] {
            assert!(of(document).contains(field), "{document}: {:?}", of(document));
        }
        assert!(!of("vm.list").contains("ip"), "of another object inside");
        assert!(of("vm.exec").is_empty());
    }

    #[test]
    fn other_fields_go_from_each_object() {
        let fields = BTreeSet::from(["a".to_owned(), "c".to_owned()]);
        let value = json!([{"a": {"b": 1}, "b": 2, "c": null}, {"b": 3}]);
        assert_eq!(only(value, &fields), json!([{"a": {"b": 1}, "c": null}, {}]));
    }
}
