/** Prompts as requests give them. Of lists as long as a body can be, zod would take seconds to name all that is wrong. */
import { z } from 'zod';

const maxInt32 = 2 ** 31 - 1;

const isText = (value: unknown): value is string => typeof value === 'string';
const isId = (value: unknown) => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= maxInt32;
const isIds = (value: unknown): value is number[] => Array.isArray(value) && value.every(isId);
const isList = (value: unknown) => Array.isArray(value) && (value.every(isText) || value.every(isIds));

const text = { type: 'string' } as const;
const ids = { type: 'array', items: { type: 'integer', minimum: 0 } } as const;

export const tokenIds = z.custom<number[]>(isIds, 'must be a list of token ids').meta(ids);

export const promptText = z
  .custom<string | number[] | string[] | number[][]>(
    (value) => isText(value) || isIds(value) || isList(value),
    'must be a text, a list of token ids, or a list of one of them',
  )
  .meta({
    description: 'A text, token ids, or a list of one of them',
    anyOf: [text, ids, { type: 'array', items: text }, { type: 'array', items: ids }],
  });
