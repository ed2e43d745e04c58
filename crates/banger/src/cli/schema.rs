//! `banger schema`: JSON Schema of what each command prints with `--json`, made of the types that are printed.

use super::documents::{Copied, Ended, Failure, Figures, Listening, LogLine, OneOrMore};
use super::documents::{Planned, Pruned, Pulled, Pushed, Stage, Timings, Versions};
use super::problem::Problem;
use super::{config, doctor, output};
use crate::api::asset::{Asset, Removed};
use crate::api::template::{Removed as Gone, Template};
use crate::api::vm::{Changed, Vm};
use crate::near;
use clap::Args;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::Value;

#[derive(Args)]
pub(crate) struct Schema {
    /// The command, as `vm list` or vm.list; none: all of them are listed.
    command: Vec<String>,
}

/// How a schema is made.
type Make = fn() -> Value;

/// Each document's name, and its schema.
const SCHEMAS: &[(&str, Make)] = &[
    ("config.show", of::<OneOrMore<config::Setting>>),
    ("doctor", of::<doctor::Report<'_>>),
    ("error", of::<Failure>),
    ("helper.list", || helpers(include_str!("../../../../docs/schema/priv.list_resources.json"))),
    ("helper.probe", || helpers(include_str!("../../../../docs/schema/priv.probe_network.json"))),
    ("image.build", of::<Asset>),
    ("image.import", of::<Asset>),
    ("image.list", of::<Vec<Asset>>),
    ("image.promote", of::<Asset>),
    ("image.pull", of::<Asset>),
    ("image.rm", of::<Vec<Removed>>),
    ("image.show", of::<OneOrMore<Asset>>),
    ("kernel.import", of::<Asset>),
    ("kernel.list", of::<Vec<Asset>>),
    ("kernel.rm", of::<Vec<Removed>>),
    ("kernel.show", of::<OneOrMore<Asset>>),
    ("progress", of::<Stage<'_>>),
    ("template.build", of::<Template>),
    ("template.list", of::<Vec<Template>>),
    ("template.rm", of::<Vec<Gone>>),
    ("template.show", of::<OneOrMore<Template>>),
    ("version", of::<Versions>),
    ("vm.cp", of::<Copied>),
    ("vm.create", of::<Vm>),
    ("vm.kill", of::<Vec<Changed>>),
    ("vm.list", of::<Vec<Vm>>),
    ("vm.logs", of::<LogLine<'_>>),
    ("vm.plan", of::<Planned>),
    ("vm.ports", of::<Vec<Listening>>),
    ("vm.prune", of::<Pruned<'_>>),
    ("vm.restart", of::<Vec<Changed>>),
    ("vm.result", of::<Ended<'_>>),
    ("vm.rm", of::<Vec<Changed>>),
    ("vm.run", of::<Timings<'_>>),
    ("vm.show", of::<OneOrMore<Vm>>),
    ("vm.start", of::<Vec<Changed>>),
    ("vm.stats", of::<Vec<Figures<'_>>>),
    ("vm.stop", of::<Vec<Changed>>),
    ("vm.workspace.pull", of::<Pulled>),
    ("vm.workspace.push", of::<Pushed>),
];

/// Prints a schema, or their names.
pub(crate) fn schema(wanted: &Schema) -> Result<(), Problem> {
    let name = wanted.command.join(".");
    if name.is_empty() {
        return output::data(&SCHEMAS.iter().map(|(name, _)| format!("{name}\n")).collect::<String>());
    }
    let Some(schema) = of_document(&name) else {
        let shown = wire::code::shown(&name);
        let problem = Problem::missing("no_such_schema", format!("there is no document {shown} that is JSON"));
        return Err(match near::nearest(&name, SCHEMAS.iter().map(|(name, _)| *name)) {
            Some(near) => problem.fix(format!("{near} is close; banger schema lists them all")),
            None => problem.fix("banger schema lists them all"),
        });
    };
    // Indented, as a person reads it; it holds nothing but our own words.
    let text = serde_json::to_string_pretty(&schema).map_err(|error| Problem::new("output", error.to_string()))?;
    output::data(&format!("{text}\n"))
}

/// The documents' names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SCHEMAS.iter().map(|(name, _)| *name)
}

/// That document's schema.
pub(crate) fn of_document(name: &str) -> Option<Value> {
    SCHEMAS.iter().find(|(known, _)| *known == name).map(|(_, make)| make())
}

/// The schema of what is written: what may be unknown is there all the same.
fn of<T: JsonSchema>() -> Value {
    let mut schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    // Names of types of ours: nobody's business. And what is read where it is missing is written all the same.
    schema.remove("title");
    RecursiveTransform(|schema: &mut schemars::Schema| drop(schema.remove("default"))).transform(&mut schema);
    schema.to_value()
}

/// The result of a method of the helper's, which is printed as it came.
fn helpers(document: &str) -> Value {
    let method: Value = serde_json::from_str(document).unwrap_or_default();
    method["result"].clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    fn with_json(command: &Command, path: &str, found: &mut Vec<String>) {
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            let path =
                if path.is_empty() { inner.get_name().to_owned() } else { format!("{path}.{}", inner.get_name()) };
            if inner.get_arguments().any(|argument| argument.get_id() == "json") {
                found.push(path.clone());
            }
            with_json(inner, &path, found);
        }
    }

    #[test]
    fn every_command_with_json_has_a_schema() {
        let mut commands = Vec::new();
        with_json(&crate::cli::command(), "", &mut commands);
        assert!(commands.len() > 20, "{commands:?}");
        // `exec` has it for its errors; a workspace without a word is a push.
        let own = ["vm.exec", "vm.workspace"];
        commands.retain(|name| !own.contains(&name.as_str()));
        let missing: Vec<&String> =
            commands.iter().filter(|name| !SCHEMAS.iter().any(|(known, _)| known == name)).collect();
        assert!(missing.is_empty(), "no schema: {missing:?}");
        assert!(SCHEMAS.is_sorted_by_key(|(name, _)| name));
    }
}
