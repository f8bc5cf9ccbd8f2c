//! Batches as Arrow IPC streams.

use std::panic::catch_unwind;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;

/// One batch as an Arrow IPC stream, uncompressed.
///
/// # Errors
/// If a column cannot be written.
pub fn to_stream(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    writer.into_inner()
}

/// The batches of an Arrow IPC stream. Memory is bounded by the length of `stream`, whatever sizes it claims.
///
/// # Errors
/// If it is no such stream, ends in the middle of a message, or claims more rows than it has bytes.
pub fn from_stream(stream: Vec<u8>) -> Result<Vec<RecordBatch>, ArrowError> {
    let limit = stream.len();
    // Arrow's reader trusts parts of a message that only a hostile sender gets wrong, and panics on them.
    let read = catch_unwind(|| read_all(stream));
    let batches = read.unwrap_or_else(|_| Err(ArrowError::IpcError("malformed message".into())))?;
    if batches.iter().map(RecordBatch::num_rows).fold(0, usize::saturating_add) > limit {
        return Err(ArrowError::IpcError("more rows than bytes".into()));
    }
    Ok(batches)
}

fn read_all(stream: Vec<u8>) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut rest = Buffer::from_vec(stream);
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !rest.is_empty() {
        match decoder.decode(&mut rest)? {
            Some(batch) => batches.push(batch),
            None => break,
        }
    }
    decoder.finish()?;
    Ok(batches)
}
