/** Refuses what the grammar library would pass over in silence: an answer must never break a rule of its schema. */
import { EspalierError } from '../errors.ts';

type Json = Record<string, unknown>;

const maxDepth = 64;
/** Keywords with schemas in them: one, a list, a map by name. */
const nested = {
  one: ['items', 'additionalProperties', 'unevaluatedProperties', 'unevaluatedItems', 'additionalItems'],
  list: ['anyOf', 'oneOf', 'allOf', 'prefixItems'],
  map: ['properties', 'patternProperties', '$defs', 'definitions'],
};
const ignored = ['title', 'description', 'default', 'examples', 'deprecated', 'readOnly', 'writeOnly', '$comment'];
const checked = ['type', 'enum', 'const', '$ref', 'required', 'pattern', 'format', 'minLength', 'maxLength', 'minimum']
  .concat(['maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'minItems', 'maxItems', 'minProperties', 'maxProperties'])
  .concat(['$schema', '$id']);
const known = new Set([...nested.one, ...nested.list, ...nested.map, ...ignored, ...checked]);

/** @throws USAGE with the field `format`, naming the keyword and where it stands */
export function checkSchema(schema: unknown, path = 'schema', depth = 0): void {
  const fail = (what: string) => {
    throw new EspalierError('USAGE', `format: ${path.slice(0, 200)} ${what}`, { field: 'format' });
  };
  if (depth > maxDepth) fail(`is nested more than ${maxDepth} deep`);
  if (schema === true && depth > 0) return;
  if (schema === false && /(Properties|Items)$/.test(path)) return;
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) fail('is not a schema');
  const object = schema as Json;
  for (const keyword of Object.keys(object)) {
    if (!known.has(keyword)) fail(`has ${JSON.stringify(keyword.slice(0, 100))}, which is not supported`);
  }
  const { $ref } = object;
  if ($ref !== undefined && !(typeof $ref === 'string' && /^#(\/|$)/.test($ref))) {
    fail('has a $ref to another document; nothing is fetched');
  }
  for (const key of nested.one) if (key in object) checkSchema(object[key], `${path}.${key}`, depth + 1);
  for (const key of nested.list) {
    if (!(key in object)) continue;
    const list = object[key];
    if (!Array.isArray(list) || list.length === 0) fail(`has ${key} that is not a list of schemas`);
    for (const [i, item] of (list as unknown[]).entries()) checkSchema(item, `${path}.${key}.${i}`, depth + 1);
  }
  for (const key of nested.map) {
    if (!(key in object)) continue;
    const map = object[key];
    if (typeof map !== 'object' || map === null || Array.isArray(map)) fail(`has ${key} that are not schemas by name`);
    for (const [name, item] of Object.entries(map as Json)) checkSchema(item, `${path}.${key}.${name}`, depth + 1);
  }
}
