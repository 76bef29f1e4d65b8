/**
 * Marks config.json as sparse or packed and unmarks it by editing the text, because parsing and printing it would turn 10000.0 into
 * 10000, which loaders that check types refuse.
 */
import { sparseConfig } from './sparse-layout.ts';

const markOf = (config: object) => `"quantization_config": ${JSON.stringify(config)}`;

/** The text of config.json with `quantization_config` of a sparse checkpoint added. It must not have one yet. */
export function markSparse(text: string): string {
  return addQuantization(text, sparseConfig);
}

/** The text of config.json with a `quantization_config` added. It must not have one yet. */
export function addQuantization(text: string, config: object): string {
  const mark = markOf(config);
  const open = text.indexOf('{') + 1;
  const isEmpty = /^\s*\}/.test(text.slice(open));
  return `${text.slice(0, open)}${mark}${isEmpty ? '' : ','}${text.slice(open)}`;
}

/** The inverse: the same text again where markSparse made it, the same content where somebody reformatted it since. */
export function unmarkSparse(text: string): string {
  const open = text.indexOf('{') + 1;
  const mark = markOf((JSON.parse(text) as { quantization_config?: object }).quantization_config ?? {});
  if (text.startsWith(mark, open)) {
    const rest = text.slice(open + mark.length);
    return text.slice(0, open) + (rest.startsWith(',') ? rest.slice(1) : rest);
  }
  const { quantization_config: _, ...config } = JSON.parse(text) as Record<string, unknown>;
  return `${JSON.stringify(config, null, 2)}\n`;
}
