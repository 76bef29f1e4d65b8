/** Chat templates that write calls of tools in other forms than the embedded model's, as those of published models do. */
import { join } from 'node:path';
import { folderWith } from './tokenizers.ts';

const turns = (call: string) => `
{%- for message in messages %}
  {%- if message['role'] == 'user' %}
    {%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
    {{- '[INST]' + message['content'] + '[/INST]' }}
  {%- elif message['tool_calls'] %}
    ${call}
    {{- eos_token }}
  {%- elif message['role'] == 'tool' %}
    {{- '[TOOL_RESULTS]' + message['content'] + '[/TOOL_RESULTS]' }}
  {%- else %}
    {{- message['content'] + eos_token }}
  {%- endif %}
{%- endfor %}`;

const callsAs = (call: string, between = '') => `
{%- for call in message['tool_calls'] %}
  {{- ${call} }}
  {%- if not loop.last %}{{ '${between}' }}{% endif %}
{%- endfor %}`;

const templates = {
  'mistral-list': turns(`
    {%- for call in message['tool_calls'] if call['id'] | length != 9 %}
      {{- raise_exception('ids of calls have nine characters') }}
    {%- endfor %}
    {{- '[TOOL_CALLS] [' }}
    ${callsAs(`'{"name": "' + call['function']['name'] + '", "arguments": ' + (call['function']['arguments'] | tojson) + ', "id": "' + call['id'] + '"}'`, ', ')}
    {{- ']' }}`),
  'mistral-named': turns(
    callsAs(`'[TOOL_CALLS]' + call['function']['name'] + '[ARGS]' + (call['function']['arguments'] | tojson)`),
  ),
  llama: turns(`
    {%- if message['tool_calls'] | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
    ${callsAs(`'{"name": "' + call['function']['name'] + '", "parameters": ' + (call['function']['arguments'] | tojson) + '}'`)}`),
  /** Its form is nobody's. */
  unknown: turns(callsAs(`'<call ' + call['function']['name'] + '>' + (call['function']['arguments'] | tojson)`)),
  /** Tells of tools and shows no call. */
  silent: turns(''),
};

export type TemplateName = keyof typeof templates;

export function toolTemplate(name: TemplateName): string {
  return join(folderWith({ 'chat_template.jinja': templates[name] }), 'chat_template.jinja');
}
