import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TextStream } from '../lib/tokenizer/text-stream.ts';
import { Tokenizer } from '../lib/tokenizer/tokenizer.ts';
import { checkpoints, folderWith, sampleText, wordMarkTokenizer } from './support/tokenizers.ts';

const wordMarkFolder = folderWith({
  'tokenizer.json': wordMarkTokenizer(sampleText, 120),
  'tokenizer_config.json': { bos_token: '<s>', eos_token: '</s>' },
});
const tokenizers: [string, Tokenizer][] = [];
for (const folder of checkpoints()) tokenizers.push([folder, await Tokenizer.load(folder)]);
tokenizers.push(['a word-mark vocabulary', await Tokenizer.load(wordMarkFolder)]);

const anyText = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 40 }),
  fc.string({ unit: 'binary', maxLength: 40 }),
  fc
    .array(fc.constantFrom(' ', '  ', '\n', 'the tree', 'é', '漢字', '👩‍🌾', '\ufffd', '\ufeff', '▁'))
    .map((parts) => parts.join('')),
);

/** The rule in one place, character by character: stop as soon as some stop string is complete. */
function cut(text: string, stops: readonly string[]): { text: string; stopped: string | undefined } {
  for (let end = 1; end <= text.length; ++end) {
    const done = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0];
    if (done !== undefined) return { text: text.slice(0, end - done.length), stopped: done };
  }
  return { text, stopped: undefined };
}

function stream(tokenizer: Tokenizer, ids: Iterable<number>, stop: string[] = [], skipSpecialTokens = true) {
  const out = new TextStream(tokenizer, { stop, skipSpecialTokens });
  const pieces = [...ids].map((id) => out.push(id));
  pieces.push(out.end());
  return { pieces, text: pieces.join(''), stopped: out.stopped };
}

describe.each(tokenizers)('text streamed by the tokenizer of %s', (_, tokenizer) => {
  const anyIds = fc.array(fc.nat({ max: tokenizer.vocabularySize + 5 }), { maxLength: 40 });
  const byteIds = Array.from({ length: 256 }, (_, byte) => {
    const name = `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
    return tokenizer.tokenId(name) ?? byte + 1;
  });
  const rawBytes = fc.array(fc.constantFrom(...byteIds), { maxLength: 80 });

  it('is, joined, what all ids decode to at once', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const ids = tokenizer.encode(text);
        expect(stream(tokenizer, ids).text).toBe(tokenizer.decode(ids, { skipSpecialTokens: true }));
      }),
      { numRuns: 500 },
    );
  });

  it('is so for arbitrary ids and bytes that are not UTF-8, special tokens left out or not', () => {
    fc.assert(
      fc.property(fc.oneof(anyIds, rawBytes), fc.boolean(), (ids, skipSpecialTokens) => {
        const { text } = stream(tokenizer, ids, [], skipSpecialTokens);
        expect(text).toBe(tokenizer.decode(ids, { skipSpecialTokens }));
      }),
      { numRuns: 1000 },
    );
  });

  it('never splits a character, and shows U+FFFD early only where the bytes can no longer become one', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'grapheme', maxLength: 40 }).filter((text) => !text.includes('\ufffd')),
        (text) => {
          const { pieces } = stream(tokenizer, tokenizer.encode(text));
          for (const piece of pieces) {
            expect(piece).not.toMatch(/\p{Surrogate}/u);
            expect(piece).not.toContain('\ufffd');
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it('ends before the stop string that is complete first, wherever the pieces are cut', () => {
    const withStops = anyText.chain((text) => {
      const characters = [...text];
      const inside = fc
        .tuple(fc.nat({ max: characters.length }), fc.integer({ min: 1, max: 6 }))
        .map(([at, length]) => characters.slice(at, at + length).join(''));
      const stop = fc.oneof(inside, fc.string({ unit: 'grapheme', minLength: 1, maxLength: 4 }));
      const wellFormed = stop.filter((each) => each !== '' && !/\p{Surrogate}/u.test(each));
      return fc.tuple(fc.constant(text), fc.array(wellFormed, { maxLength: 4 }));
    });
    let stops = 0;
    fc.assert(
      fc.property(withStops, ([text, stop]) => {
        const ids = tokenizer.encode(text);
        const { text: got, stopped } = stream(tokenizer, ids, stop);
        expect({ text: got, stopped }).toEqual(cut(tokenizer.decode(ids, { skipSpecialTokens: true }), stop));
        if (stopped !== undefined) ++stops;
      }),
      { numRuns: 1000 },
    );
    expect(stops).toBeGreaterThan(50);
  });

  it('keeps up with ids that never become a character', () => {
    const continuation = byteIds[0x80] as number;
    const repeated = new Array<number>(20_000).fill(tokenizer.tokenId('<0x80>') ?? lone(tokenizer, continuation));
    const start = performance.now();
    const { text } = stream(tokenizer, repeated);
    expect(performance.now() - start).toBeLessThan(20_000);
    expect(text).toBe('\ufffd'.repeat(20_000));
  });
});

/** The id whose one byte is no character by itself. */
function lone(tokenizer: Tokenizer, guess: number): number {
  for (let id = guess; ; ++id) if (tokenizer.decode([id, id]) === '\ufffd\ufffd') return id;
}

describe('a stop string', () => {
  const tokenizer = tokenizers[0]?.[1] as Tokenizer;

  it('ends the text when its last character arrives, not later', () => {
    const out = new TextStream(tokenizer, { stop: ['tree'] });
    const ids = [...tokenizer.encode('a tree grows')];
    let shown = '';
    for (const id of ids) {
      shown += out.push(id);
      if (out.stopped !== undefined) break;
    }
    expect(out.stopped).toBe('tree');
    expect(shown).toBe('a ');
    expect(out.push(ids[0] as number)).toBe('');
    expect(out.end()).toBe('');
  });

  it('that only began is shown at the end', () => {
    const { pieces, text, stopped } = stream(tokenizer, tokenizer.encode('one two'), ['two three']);
    expect({ text, stopped }).toEqual({ text: 'one two', stopped: undefined });
    expect(pieces.at(-1)).toBe('two');
  });
});

describe('the end token', () => {
  it('is left out unless asked for', () => {
    const tokenizer = tokenizers[0]?.[1] as Tokenizer;
    const ids = [...tokenizer.encode('end'), tokenizer.eosId as number];
    expect(stream(tokenizer, ids).text).toBe('end');
    expect(stream(tokenizer, ids, [], false).text).toBe(`end${tokenizer.eosToken}`);
  });
});
