import { once } from 'node:events';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { dataError } from './data-error.ts';
import { maxTextBytes } from './text-files.ts';

/** Most bytes of text that one row group may unpack to; writers make groups of up to 128 MB. */
const maxGroupBytes = 512 * 1024 * 1024;
const codecs = ['UNCOMPRESSED', 'SNAPPY', 'GZIP', 'BROTLI'];

/**
 * Reads on a thread of its own: a damaged file can make the decoder count for ever or exhaust memory, which then ends
 * that thread only. It answers `{ file }` with what the footer says, and `{ rowStart, rowEnd }` with texts.
 */
const workerSource = `
  const { parentPort, workerData } = require('node:worker_threads');
  const { brotliDecompressSync, gunzipSync } = require('node:zlib');
  const limited = (unpack) => (input, length) => unpack(input, { maxOutputLength: Math.max(1, length) });
  const compressors = { GZIP: limited(gunzipSync), BROTLI: limited(brotliDecompressSync) };
  let file;
  let metadata;
  parentPort.on('message', async (request) => {
    try {
      const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, parquetSchema } = await import(workerData);
      if (request.file !== undefined) {
        file = await asyncBufferFromFile(request.file);
        metadata = await parquetMetadataAsync(file);
        const columns = parquetSchema(metadata).children.map((child) => child.element.name);
        const groups = metadata.row_groups.map((group) => {
          const column = group.columns.find(({ meta_data }) => meta_data?.path_in_schema[0] === 'text')?.meta_data;
          return { rows: Number(group.num_rows), codec: column?.codec, bytes: Number(column?.total_uncompressed_size) };
        });
        parentPort.postMessage({ columns, groups });
      } else {
        const { rowStart, rowEnd } = request;
        const rows = await parquetReadObjects({ file, metadata, columns: ['text'], rowStart, rowEnd, compressors });
        parentPort.postMessage({ texts: rows.map(({ text }) => text) });
      }
    } catch (error) {
      parentPort.postMessage({ error: String(error?.message ?? error) });
    }
  });
`;

interface Footer {
  columns: string[];
  groups: { rows: number; codec: string | undefined; bytes: number }[];
}

/**
 * The `text` column of a .parquet file, one row group in memory at a time. The column may be uncompressed, or compressed
 * by snappy, gzip or brotli.
 */
export async function* readParquet(file: string): AsyncGenerator<string> {
  const library = pathToFileURL(createRequire(import.meta.url).resolve('hyparquet')).href;
  const worker = new Worker(workerSource, {
    eval: true,
    workerData: library,
    resourceLimits: { maxOldGenerationSizeMb: 2048 },
  });
  try {
    const footer = await ask<Footer>(worker, { file }, file, 0);
    checkFooter(footer, file);
    let rowStart = 0;
    for (const { rows, bytes } of footer.groups) {
      const rowEnd = rowStart + rows;
      const { texts } = await ask<{ texts: unknown[] }>(worker, { rowStart, rowEnd }, file, bytes);
      for (const [i, text] of texts.entries()) yield checkedText(text, rowStart + i, file);
      rowStart = rowEnd;
    }
  } finally {
    await worker.terminate();
  }
}

/** Waits for the answer, five seconds and one more for each megabyte to unpack. */
async function ask<T extends object>(worker: Worker, request: object, file: string, bytes: number): Promise<T> {
  const damaged = (why: string, cause?: unknown) =>
    dataError(file, `cannot be read as parquet: ${why}`, 'write it again, or use .jsonl', cause);
  worker.postMessage(request);
  const signal = AbortSignal.timeout(5_000 + Math.ceil(bytes / 1000));
  const [answer] = (await once(worker, 'message', { signal }).catch((error: unknown) => {
    if (signal.aborted) throw damaged('a page of it never ends', error);
    throw damaged(error instanceof Error ? error.message : String(error), error);
  })) as [T | { error: string }];
  if ('error' in answer) throw damaged(answer.error);
  return answer;
}

function checkFooter({ columns, groups }: Footer, file: string): void {
  if (!columns.includes('text')) {
    const shown = columns.join(', ').slice(0, 200);
    throw dataError(file, `has no column "text", only ${shown}`, 'rename the column that has the texts');
  }
  for (const [i, { rows, codec, bytes }] of groups.entries()) {
    if (codec === undefined || !codecs.includes(codec)) {
      const advice = `supported are ${codecs.join(', ').toLowerCase()}: write it again with one of these, or use .jsonl`;
      throw dataError(file, `is compressed by ${codec ?? 'an unknown codec'}`, advice);
    }
    if (!(bytes >= 0 && bytes <= maxGroupBytes && Number.isSafeInteger(rows) && rows >= 0)) {
      const problem = `has ${rows} rows with ${bytes} bytes of text in row group ${i}, at most ${maxGroupBytes} are read`;
      throw dataError(file, problem, 'write it again with smaller row groups, or use .jsonl');
    }
  }
}

function checkedText(text: unknown, row: number, file: string): string {
  if (typeof text !== 'string') {
    const found = text === null ? 'null' : `a ${typeof text}`;
    throw dataError(file, `row ${row} has ${found} for "text"`, 'it must be a string');
  }
  if (text.length <= maxTextBytes) return text;
  throw dataError(file, `row ${row} is longer than ${maxTextBytes} characters`, 'split it into several rows');
}
