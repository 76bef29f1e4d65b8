/** POST /v1/chat/completions. */
import { promptIds } from '../../runtime/generate.ts';
import type { ChatMessage } from '../../tokenizer/chat-template.ts';
import { HttpError } from '../errors.ts';
import { requestedFormat } from '../formats.ts';
import { answer } from '../reply.ts';
import { type ChatRequest, chatRequest } from '../schemas.ts';
import { type App, requireTokenizer, type Service } from '../service.ts';
import { type ToolUse, toolUse } from '../tools/use.ts';
import { ChatWriter } from '../writers.ts';

const form = { prefix: 'chatcmpl', object: 'chat.completion', chunkObject: 'chat.completion.chunk' };

export function chatRoutes(app: App, service: Service): void {
  app.post('/v1/chat/completions', { schema: { body: chatRequest } }, async ({ body }, reply) => {
    await answer(service, reply, body, form, async () => {
      const { model } = service;
      const topLogprobs = topLogprobsOf(body);
      const use = await toolUse(body, () => model.chatTemplate());
      const format = formatOf(body, use);
      const prompts = [await promptIds(model, messagesOf(body), use?.tools)];
      const tokenizer = topLogprobs === undefined ? undefined : requireTokenizer(model, 'logprobs');
      return {
        work: {
          prompts,
          maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined,
          topLogprobs,
          format,
          specialTokens: use?.form.specialTokens,
        },
        writer: (index) => new ChatWriter(index, tokenizer, use),
      };
    });
    return reply;
  });
}

function topLogprobsOf({ logprobs, top_logprobs }: ChatRequest): number | undefined {
  if (logprobs === true) return top_logprobs ?? 0;
  if (top_logprobs == null || top_logprobs === 0) return undefined;
  throw new HttpError(400, 'top_logprobs needs logprobs: true', { param: 'top_logprobs' });
}

function formatOf(body: ChatRequest, use: ToolUse | undefined) {
  const wish = requestedFormat(body);
  if (use === undefined) return wish;
  if (wish === undefined) return use.format;
  const message = `${wish.param} leaves no room for calls of tools; set tool_choice to none`;
  throw new HttpError(400, message, { param: wish.param });
}

function messagesOf({ messages }: ChatRequest): ChatMessage[] {
  return messages.map((message): ChatMessage => {
    if (message.role === 'tool') return { ...message, content: textOf(message.content) };
    const { role, content, name } = message;
    const calls = message.role === 'assistant' ? message.tool_calls : undefined;
    if (content == null && calls == null) {
      throw new HttpError(400, 'a message of the assistant needs content or tool_calls', { param: 'messages' });
    }
    return {
      role: role === 'developer' ? 'system' : role,
      content: content == null ? '' : textOf(content),
      ...(name === undefined ? {} : { name }),
      ...(calls == null ? {} : { tool_calls: calls.map(withArguments) }),
    };
  });
}

/** Content in parts is text in pieces; templates know only whole texts. */
function textOf(content: string | readonly { readonly text: string }[]): string {
  return typeof content === 'string' ? content : content.map(({ text }) => text).join('');
}

/** Templates write arguments as JSON, of which the API makes a text. */
function withArguments(call: { id: string; type: 'function'; function: { name: string; arguments: string } }): object {
  const { arguments: text } = call.function;
  try {
    return { ...call, function: { ...call.function, arguments: JSON.parse(text) } };
  } catch {
    throw new HttpError(400, 'arguments of a tool call are not JSON', { param: 'messages' });
  }
}
