import { brotliDecompressSync, gunzipSync } from 'node:zlib';
import {
  asyncBufferFromFile,
  type Compressors,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from 'hyparquet';
import { dataError } from './data-error.ts';
import { maxTextBytes } from './text-files.ts';

/** Most bytes of texts that one row group may unpack to; writers make groups of up to 128 MB. */
const maxGroupBytes = 512 * 1024 * 1024;

type Decompress = (input: Uint8Array, outputLength: number) => Uint8Array;
const limited =
  (decompress: (input: Uint8Array, options: { maxOutputLength: number }) => Uint8Array): Decompress =>
  (input, outputLength) =>
    decompress(input, { maxOutputLength: Math.min(maxGroupBytes, Math.max(1, outputLength)) });
const compressors: Compressors = { GZIP: limited(gunzipSync), BROTLI: limited(brotliDecompressSync) };
const codecs = ['UNCOMPRESSED', 'SNAPPY', 'GZIP', 'BROTLI'];

/**
 * The `text` column of a .parquet file, one row group in memory at a time. Columns may be uncompressed or compressed by
 * snappy, gzip or brotli.
 */
export async function* readParquet(file: string): AsyncGenerator<string> {
  const damaged = (error: unknown) => {
    const why = error instanceof Error ? error.message : String(error);
    return dataError(file, `cannot be read as parquet: ${why}`, 'write it again, or use .jsonl', error);
  };
  const guarded = <T>(task: Promise<T>): Promise<T> =>
    task.catch((error: unknown) => {
      throw damaged(error);
    });
  const buffer = await guarded(asyncBufferFromFile(file));
  const metadata = await guarded(parquetMetadataAsync(buffer));
  const names = parquetSchema(metadata).children.map((child) => child.element.name);
  if (!names.includes('text')) {
    throw dataError(
      file,
      `has no column "text", only ${names.join(', ').slice(0, 200)}`,
      'rename the column with the texts',
    );
  }
  let rowStart = 0;
  for (const [group, { num_rows, columns }] of metadata.row_groups.entries()) {
    const column = columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === 'text')?.meta_data;
    if (column === undefined) throw damaged(new Error(`row group ${group} lacks the column "text"`));
    if (!codecs.includes(column.codec)) {
      const advice = `supported are ${codecs.join(', ').toLowerCase()}: write it again with one of these, or use .jsonl`;
      throw dataError(file, `is compressed by ${column.codec}`, advice);
    }
    if (column.total_uncompressed_size > maxGroupBytes) {
      const size = `row group ${group} has ${column.total_uncompressed_size} bytes of text, at most ${maxGroupBytes} are read`;
      throw dataError(
        file,
        `has too large row groups: ${size}`,
        'write it again with smaller row groups, or use .jsonl',
      );
    }
    const rowEnd = rowStart + Number(num_rows);
    const rows = await guarded(
      parquetReadObjects({ file: buffer, metadata, columns: ['text'], rowStart, rowEnd, compressors }),
    );
    for (const [i, { text }] of rows.entries()) yield checked(text, rowStart + i, file);
    rowStart = rowEnd;
  }
}

function checked(text: unknown, row: number, file: string): string {
  if (typeof text !== 'string') {
    throw dataError(
      file,
      `row ${row} has ${text === null ? 'null' : `a ${typeof text}`} for "text"`,
      'it must be a string',
    );
  }
  if (text.length <= maxTextBytes) return text;
  throw dataError(file, `row ${row} is longer than ${maxTextBytes} characters`, 'split it into several rows');
}
