//! Tables of the stores below a directory: `<store>.<input>`, and short names where they are clear.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::prelude::{SessionContext, lit};

use crate::QueryError;
use crate::committed::Committed;

/// Directories below the given one in which stores are looked for.
const DEPTH: usize = 3;

/// A table that statements may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name, such as `readings.clean` or `clean`.
    pub name: String,
    /// Committed files behind it.
    pub files: usize,
    /// Names and types of its columns.
    pub columns: Vec<(String, String)>,
}

/// Stores at or below `root`, sorted. A store is a directory with `store.json` and `commits`.
pub(crate) fn find(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    look(root, DEPTH, &mut found);
    found.sort();
    found
}

fn look(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if directory.join("store.json").is_file() && directory.join("commits").is_dir() {
        found.push(directory.to_owned());
        return;
    }
    if depth == 0 {
        return;
    }
    // What cannot be read is no store.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
            look(&entry.path(), depth - 1, found);
        }
    }
}

/// A name that SQL takes without quotes.
fn plain(name: &str) -> String {
    let lower = name.to_lowercase();
    let text: String = lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) || text.is_empty() { format!("_{text}") } else { text }
}

fn free_name(name: String, taken: impl Fn(&str) -> bool) -> String {
    if !taken(&name) {
        return name;
    }
    (2..).map(|n: u64| format!("{name}_{n}")).find(|name| !taken(name)).unwrap_or(name)
}

/// Tables by store, then by input.
type Stores = BTreeMap<String, BTreeMap<String, (Arc<dyn TableProvider>, usize)>>;

/// Registers all tables and says which there are.
pub(crate) async fn register(ctx: &SessionContext, roots: &[PathBuf]) -> std::result::Result<Vec<Table>, QueryError> {
    let mut stores = Stores::new();
    for (number, root) in roots.iter().enumerate() {
        let failed = |e: &DataFusionError| QueryError::store(format!("read the store {}", root.display()), QueryError::statement(e));
        let inputs = inputs_of(ctx, number, Committed::read(root)?).await.map_err(|e| failed(&e))?;
        let name = root.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = free_name(plain(&name), |name| stores.contains_key(name) || name == "public" || name == "information_schema");
        stores.insert(name, inputs);
    }
    let failed = |e: DataFusionError| QueryError::store("register tables", QueryError::statement(&e));
    let mut tables = Vec::new();
    for (store, inputs) in &stores {
        if let Some(catalog) = ctx.catalog("datafusion") {
            catalog.register_schema(store, Arc::new(MemorySchemaProvider::new())).map_err(failed)?;
        }
        for (input, (table, files)) in inputs {
            let name = TableReference::partial(store.as_str(), input.as_str());
            add(ctx, &mut tables, name, Arc::clone(table), *files).map_err(failed)?;
        }
    }
    short_names(ctx, &stores, &mut tables).await.map_err(failed)?;
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

async fn inputs_of(ctx: &SessionContext, number: usize, committed: Committed) -> Result<BTreeMap<String, (Arc<dyn TableProvider>, usize)>> {
    let base = format!("fieldstream://store{number}/");
    let counts: Vec<(String, usize)> = committed
        .inputs()
        .into_iter()
        .map(|input| {
            let count = committed.files.iter().filter(|f| f.parts().next().is_some_and(|part| part.as_ref() == input)).count();
            (input, count)
        })
        .collect();
    ctx.runtime_env().register_object_store(ObjectStoreUrl::parse(&base)?.as_ref(), Arc::new(committed));
    let mut inputs = BTreeMap::new();
    for (input, files) in counts {
        let url = ListingTableUrl::parse(format!("{base}{input}/"))?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default()))
            .with_file_extension(".parquet")
            .with_table_partition_cols(vec![("day".to_owned(), DataType::Date32)]);
        let schema = options.infer_schema(&ctx.state(), &url).await?;
        let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(schema);
        let table: Arc<dyn TableProvider> = Arc::new(ListingTable::try_new(config)?);
        let name = free_name(plain(&input), |name| inputs.contains_key(name));
        inputs.insert(name, (table, files));
    }
    Ok(inputs)
}

fn add(ctx: &SessionContext, tables: &mut Vec<Table>, name: TableReference, table: Arc<dyn TableProvider>, files: usize) -> Result<()> {
    let columns = table.schema().fields().iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect();
    tables.push(Table { name: name.to_string(), files, columns });
    ctx.register_table(name, table).map(|_| ())
}

/// Inputs that only one store has go by their own name. A store's name stands for all of its rows, with the column `input`
/// where there are several inputs.
async fn short_names(ctx: &SessionContext, stores: &Stores, tables: &mut Vec<Table>) -> Result<()> {
    let is_taken = |tables: &[Table], name: &str| tables.iter().any(|table| table.name == name);
    for (input, (table, files)) in stores.values().flatten() {
        if stores.values().filter(|inputs| inputs.contains_key(input)).count() == 1 {
            add(ctx, tables, TableReference::bare(input.as_str()), Arc::clone(table), *files)?;
        }
    }
    for (store, inputs) in stores {
        if is_taken(tables, store) {
            continue;
        }
        let files = inputs.values().map(|(_, files)| files).sum();
        // Columns of one name and different types have no common table; the inputs' own tables remain.
        if let Ok(Some(table)) = all_inputs(ctx, store, inputs.keys()).await {
            add(ctx, tables, TableReference::bare(store.as_str()), table, files)?;
        }
    }
    Ok(())
}

async fn all_inputs(
    ctx: &SessionContext,
    store: &str,
    inputs: impl ExactSizeIterator<Item = &String>,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let several = inputs.len() > 1;
    let mut all: Option<datafusion::dataframe::DataFrame> = None;
    for input in inputs {
        let rows = ctx.table(TableReference::partial(store, input.as_str())).await?;
        let rows = if several { rows.with_column("input", lit(input.as_str()))? } else { rows };
        all = Some(match all {
            Some(before) => before.union_by_name(rows)?,
            None => rows,
        });
    }
    Ok(all.map(|rows| rows.into_view()))
}
