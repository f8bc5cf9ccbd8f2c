//! The published JSON schemas say what the types say. `cargo xtask schema` writes them.

use std::collections::BTreeMap;
use std::path::Path;

/// Path below the workspace, and what the file has to hold.
fn published() -> BTreeMap<String, String> {
    let pipeline = fieldstream_pipelines::schema_text(&fieldstream_pipelines::Catalogue::built_in());
    BTreeMap::from([("pipelines/pipeline.schema.json".to_owned(), pipeline)])
}

#[test]
fn the_published_schemas_say_what_the_types_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let write = std::env::var_os("FIELDSTREAM_WRITE_SCHEMAS").is_some();
    let mut stale = Vec::new();
    for (path, wanted) in published() {
        let file = root.join(&path);
        if std::fs::read_to_string(&file).is_ok_and(|found| found == wanted) {
            continue;
        }
        if write {
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder can be made");
            std::fs::write(&file, wanted).expect("the file can be written");
        } else {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "run `cargo xtask schema` and look at the difference; not up to date: {stale:?}");
}
