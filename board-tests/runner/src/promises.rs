//! The promises that scenarios show, from `docs/contracts.md`.

use std::{collections::BTreeMap, fs};

use crate::{error::Error, project::Project};

/// Promises by their ids.
pub(crate) struct Promises(BTreeMap<String, String>);

impl Promises {
    /// Reads the document.
    pub(crate) fn load(project: &Project) -> Result<Self, Error> {
        let path = project.root().join("docs/contracts.md");
        Ok(Self::parse(&fs::read_to_string(&path).map_err(Error::file(path))?))
    }

    /// Rows of tables whose first cell is an id; the promise is the second.
    fn parse(text: &str) -> Self {
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
            let (id, promise) = (cells.next()?, cells.next()?);
            let is_id = id.len() > 1 && id.chars().skip(1).all(|c| c.is_ascii_digit());
            is_id.then(|| (id.to_owned(), promise.to_owned()))
        };
        Self(text.lines().filter_map(row).collect())
    }

    /// The promises with these ids.
    pub(crate) fn of(&self, ids: &[&str]) -> impl Iterator<Item = &str> {
        ids.iter().filter_map(|id| self.0.get(*id)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn every_scenario_shows_a_promise_that_is_written_down() {
        let promises = Promises::load(&Project::find().unwrap()).unwrap();
        for scenario in catalogue::scenarios() {
            assert_eq!(promises.of(scenario.promises).count(), scenario.promises.len(), "{}", scenario.name);
        }
    }

    #[test]
    fn rows_without_an_id_are_none() {
        let promises =
            Promises::parse("| id | promise |\n| --- | --- |\n| S01 | One. | more |\n| S | part |\ntext");
        assert_eq!(promises.of(&["S01", "id", "S"]).collect::<Vec<_>>(), ["One."]);
    }
}
