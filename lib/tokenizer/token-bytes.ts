/** The bytes that a token stands for, which need not be whole characters. */
import { isObject } from './json.ts';

/** How a vocabulary spells bytes. */
export type Spelling = 'byte-level' | 'word-mark';

const wordMark = '▁';
const encoder = new TextEncoder();

/** How the decoder of tokenizer.json reads pieces; undefined where tokens alone have no bytes of their own. */
export function spellingOf(decoder: unknown): Spelling | undefined {
  const parts = isObject(decoder) && Array.isArray(decoder.decoders) ? decoder.decoders : [decoder];
  const types = parts.map((part) => (isObject(part) ? part.type : undefined));
  if (types.includes('ByteLevel')) return 'byte-level';
  return types.includes('ByteFallback') || types.includes('Metaspace') ? 'word-mark' : undefined;
}

export function bytesOfPiece(piece: string, spelling: Spelling): Uint8Array {
  if (spelling === 'byte-level') {
    return Uint8Array.from([...piece].flatMap((character) => byteOf.get(character) ?? [...encoder.encode(character)]));
  }
  const byte = /^<0x([0-9A-F]{2})>$/.exec(piece)?.[1];
  if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
  return encoder.encode(piece.replaceAll(wordMark, ' '));
}

/** How GPT-2's vocabulary spells these bytes. */
export function spellBytes(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => spelled[byte]!).join('');
}

/** GPT-2 spells bytes that print as themselves, and the others as the characters from U+0100 on. */
const spelled: string[] = [];
for (let byte = 0, next = 256; byte < 256; byte++) {
  const prints = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  spelled.push(String.fromCharCode(prints ? byte : next++));
}
const byteOf = new Map(spelled.map((character, byte) => [character, byte]));
