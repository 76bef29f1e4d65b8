import { EspalierError } from '../errors.ts';
import type { Tokenizer } from './tokenizer.ts';

/** Characters of a token, about twice as many as of most languages. */
const charactersPerToken = 8;
/** By which the cut may make the beginning of a text longer in tokens than it is in the whole text. */
const cutTokens = 64;

/**
 * Encodes a text that must fit a context. Of one that is much too long only the beginning is encoded, so that it costs no more
 * than one that fits.
 * @throws CONTEXT_FULL
 */
export function encodeAtMost(
  tokenizer: Tokenizer,
  text: string,
  maxTokens: number,
  options: { addSpecialTokens?: boolean } = {},
): Uint32Array {
  for (let length = maxTokens * charactersPerToken; length < text.length; length *= 4) {
    const beginning = tokenizer.encode(text.slice(0, length), options);
    if (beginning.length <= maxTokens + cutTokens) continue;
    throw new EspalierError('CONTEXT_FULL', `the text has more than the ${maxTokens} tokens that there is room for`, {
      field: 'prompt',
    });
  }
  return tokenizer.encode(text, options);
}
