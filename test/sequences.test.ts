import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { calibrationSequences, evaluationWindows } from '../lib/calibration/sequences.ts';
import type { Documents } from '../lib/calibration/token-source.ts';

const end = 0;
const text = (...documents: number[][]): Documents => ({
  kind: 'text',
  name: 'a text',
  documents: documents.map((ids) => Uint32Array.from(ids)),
  separator: end,
  warnings: [],
});
const ids = (...documents: number[][]): Documents => ({ ...text(...documents), kind: 'ids', separator: undefined });
const count = (n: number, from = 1) => Array.from({ length: n }, (_, i) => from + i);
const lists = (found: { sequences: readonly Uint32Array[] }) => found.sequences.map((sequence) => [...sequence]);

describe('calibration sequences of ids', () => {
  it('are the first consecutive slices, across the borders of documents', () => {
    const found = calibrationSequences(ids(count(5), count(6, 6)), { samples: 2, sequenceLength: 3 });
    expect(lists(found)).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    expect(found).toMatchObject({ count: 2, sequenceLength: 3, warnings: [] });
    expect([...found.ids]).toEqual(count(6));
  });

  it('do not depend on the seed', () => {
    const options = { samples: 3, sequenceLength: 2 };
    expect(calibrationSequences(ids(count(20)), { ...options, seed: 1 })).toEqual(
      calibrationSequences(ids(count(20)), { ...options, seed: 2 }),
    );
  });
});

describe('calibration sequences of text', () => {
  it('are consecutive slices of the documents with the end token between, when all are taken', () => {
    const found = calibrationSequences(text([1, 2, 3], [4], [5, 6, 7]), { samples: 4, sequenceLength: 2 });
    expect(lists(found)).toEqual([
      [1, 2],
      [3, end],
      [4, end],
      [5, 6],
    ]);
    expect(found.warnings).toEqual([]);
  });

  it('join without an end token where the tokenizer has none', () => {
    const found = calibrationSequences(
      { ...text([1, 2, 3], [4]), separator: undefined },
      { samples: 2, sequenceLength: 2 },
    );
    expect(lists(found)).toEqual([
      [1, 2],
      [3, 4],
    ]);
  });

  it('are slices of the text, each taken once, in its order, the same for a seed and more for more samples', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 300 }),
        fc.integer({ min: 2, max: 9 }),
        fc.nat(),
        fc.integer({ min: 1, max: 40 }),
        (tokens, sequenceLength, seed, samples) => {
          const documents = text(count(tokens));
          const found = calibrationSequences(documents, { samples, sequenceLength, seed });
          const length = Math.min(sequenceLength, tokens);
          const starts = found.sequences.map((sequence) => (sequence[0] as number) - 1);
          for (const [i, sequence] of found.sequences.entries()) {
            expect([...sequence]).toEqual(count(length, (starts[i] as number) + 1));
            expect((starts[i] as number) % length).toBe(0);
          }
          expect(starts).toEqual([...new Set(starts)].sort((a, b) => a - b));
          expect(found.count).toBe(Math.min(samples, Math.floor(tokens / length)));
          expect(calibrationSequences(documents, { samples, sequenceLength, seed })).toEqual(found);
          const more = calibrationSequences(documents, { samples: samples + 1, sequenceLength, seed });
          expect(lists(more)).toEqual(expect.arrayContaining(lists(found)));
        },
      ),
    );
  });

  it('follow the documented draw: the smallest SHA-256 keys of seed and index', () => {
    const key = (i: number) => createHash('sha256').update(`espalier:7:${i}`).digest('hex');
    const smallest = count(50, 0)
      .sort((a, b) => (key(a) < key(b) ? -1 : 1))
      .slice(0, 5);
    const found = calibrationSequences(text(count(100, 0)), { samples: 5, sequenceLength: 2, seed: 7 });
    expect(found.sequences.map((sequence) => (sequence[0] as number) / 2)).toEqual(smallest.sort((a, b) => a - b));
  });

  it('differ between seeds, and over many seeds take every slice about equally often', () => {
    const times = new Array<number>(20).fill(0);
    for (let seed = 0; seed < 1000; ++seed) {
      const { sequences } = calibrationSequences(text(count(40, 0)), { samples: 5, sequenceLength: 2, seed });
      for (const sequence of sequences) times[(sequence[0] as number) / 2]! += 1;
    }
    // Binomial(1000, 1/4): mean 250, standard deviation 13.7.
    for (const n of times) expect(Math.abs(n - 250)).toBeLessThan(80);
  });
});

describe('too few tokens', () => {
  it('give fewer sequences, with a warning that says how many there are', () => {
    const found = calibrationSequences(text(count(70)), { samples: 8, sequenceLength: 20 });
    expect(found.count).toBe(3);
    expect(found.warnings).toEqual([
      expect.stringMatching(/8 sequences of 20 tokens were asked for, there are 3 \(70 tokens\)/),
    ]);
  });

  it('give one short sequence when there is not a whole one', () => {
    const found = calibrationSequences(ids(count(7)), { samples: 1, sequenceLength: 20 });
    expect(lists(found)).toEqual([count(7)]);
    expect(found.sequenceLength).toBe(7);
    expect(found.warnings).toEqual([expect.stringContaining('only 7 tokens, less than one sequence of 20')]);
  });

  it('are an error when there are fewer than two', () => {
    for (const documents of [text([5]), text(), ids()]) {
      for (const make of [calibrationSequences, evaluationWindows])
        expect(() => make(documents, { sequenceLength: 4 })).toThrow(
          expect.objectContaining({ code: 'DATA', file: 'a text' }),
        );
    }
  });

  it('keep the warnings of reading', () => {
    const found = evaluationWindows({ ...text(count(4)), warnings: ['early'] }, { sequenceLength: 4 });
    expect(found.warnings).toEqual(['early']);
  });
});

describe('evaluation windows', () => {
  it('do not overlap, follow the text, and leave out the last partial one', () => {
    expect(lists(evaluationWindows(text(count(11)), { sequenceLength: 4 }))).toEqual([count(4), count(4, 5)]);
    expect(lists(evaluationWindows(text(count(3), count(4, 5)), { sequenceLength: 4 }))).toEqual([
      [1, 2, 3, end],
      count(4, 5),
    ]);
  });

  it('are the first so many on request', () => {
    expect(lists(evaluationWindows(text(count(40)), { sequenceLength: 4, maxWindows: 2 }))).toEqual([
      count(4),
      count(4, 5),
    ]);
    expect(evaluationWindows(text(count(40)), { sequenceLength: 4, maxWindows: 99 }).count).toBe(10);
  });

  it('are the partial one when it is the only one', () => {
    const found = evaluationWindows(text(count(3)), { sequenceLength: 4 });
    expect(lists(found)).toEqual([count(3)]);
    expect(found).toMatchObject({ count: 1, sequenceLength: 3 });
    expect(found.warnings).toHaveLength(1);
  });
});

describe('the hash of sequences', () => {
  it('is the SHA-256 of the ids as little-endian 32-bit integers', () => {
    const bytes = Buffer.alloc(12);
    for (const [i, id] of [7, 70_000, 3].entries()) bytes.writeUInt32LE(id, 4 * i);
    const { hash } = evaluationWindows(ids([7, 70_000, 3]), { sequenceLength: 3 });
    expect(hash).toBe(createHash('sha256').update(bytes).digest('hex'));
  });
});

describe('a count that is none', () => {
  it.each([
    [{ samples: 0 }, 'samples'],
    [{ samples: 1.5 }, 'samples'],
    [{ sequenceLength: 1 }, 'sequenceLength'],
    [{ sequenceLength: Number.NaN }, 'sequenceLength'],
  ])('as in %j is refused', (options, field) => {
    expect(() => calibrationSequences(ids(count(9)), options)).toThrow(
      expect.objectContaining({ code: 'USAGE', field }),
    );
  });

  it('as in no windows is refused', () => {
    expect(() => evaluationWindows(ids(count(9)), { sequenceLength: 2, maxWindows: 0 })).toThrow(
      expect.objectContaining({ code: 'USAGE', field: 'maxWindows' }),
    );
  });
});
