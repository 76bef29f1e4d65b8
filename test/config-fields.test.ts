/** config.json is changed where it must be and nowhere else. */
import { expect, test } from 'vitest';
import { setFields } from '../lib/checkpoint/config-fields.ts';

const text = `{
  "theta": 10000.0,
  "num_experts": 8, "nested": { "num_experts": 1, "list": [1, {"num_experts": 2}] },
  "text": "\\"num_experts\\": 3, }{",
  "eps": 1e-05,
  "last": [true, null]
}
`;

test('a value is replaced in its place, and all else stays as it was written', () => {
  const changed = setFields(
    text,
    new Map<string, unknown>([
      ['num_experts', [6, 5]],
      ['last', 2],
    ]),
  );
  expect(changed).toBe(text.replace('"num_experts": 8', '"num_experts": [6,5]').replace('[true, null]', '2'));
  expect(changed).toContain('10000.0');
});

test('a field that is missing comes last, indented as the others', () => {
  const changed = setFields(text, new Map([['expert_of_row', [[0, 0], null]]]));
  expect(changed).toBe(text.replace('[true, null]', '[true, null],\n  "expert_of_row": [[0,0],null]'));
  expect(JSON.parse(changed)).toEqual({ ...JSON.parse(text), expert_of_row: [[0, 0], null] });
  expect(setFields('{}', new Map([['a', 1]]))).toBe('{"a": 1}');
  expect(JSON.parse(setFields('{"b":{}}', new Map([['a', 1]])))).toEqual({ a: 1, b: {} });
});

test('nothing to change leaves every byte', () => {
  expect(setFields(text, new Map())).toBe(text);
});

test('of a name that stands twice the one that counts is changed', () => {
  expect(JSON.parse(setFields('{"a": 1, "a": 2}', new Map([['a', 3]])))).toEqual({ a: 3 });
});
