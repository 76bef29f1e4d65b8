import { type Command, Option } from 'commander';
import { EspalierError } from '../../errors.ts';
import type { Context, Start } from '../context.ts';
import { type ArithmeticOptions, addArithmeticOptions, addGlobalOptions, integer, path } from '../options.ts';

interface Options extends ArithmeticOptions {
  host: string;
  port: number;
  apiKeyFile?: string;
  modelName?: string;
  chatTemplate?: string;
  kvTokens?: number;
  maxRequests?: number;
  shutdownTimeout: number;
  page: boolean;
  logLevel: string;
}

const logLevels = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'];

/** `espalier serve` */
export function defineServe(program: Command, start: Start): void {
  const command = program
    .command('serve')
    .description("Answer OpenAI's API over HTTP until SIGTERM or Ctrl-C.")
    .argument('<model>', 'folder of a checkpoint')
    .option('--host <address>', 'address to listen on', '127.0.0.1')
    .option('--port <n>', 'port, 0 for any that is free', integer(0, 65535), 8080)
    .option('--api-key-file <file>', 'keys, one a line; every route but /health and the page then asks for one', path)
    .option('--model-name <name>', 'what requests call the model (default: the name of its folder)')
    .option('--chat-template <file>', "Jinja template, in place of the checkpoint's", path)
    .option('--kv-tokens <n>', 'tokens that the KV cache has room for', integer(1, Number.MAX_SAFE_INTEGER))
    .option('--max-requests <n>', 'requests taken on at a time (default: 256)', integer(1, 1_000_000))
    .option('--shutdown-timeout <s>', 'seconds that answers have to end after SIGTERM', integer(0, 86_400), 30)
    .option('--no-page', 'do not answer GET / with a page to chat and to watch the load')
    .addOption(new Option('--log-level <level>', 'least that is logged, on stderr').choices(logLevels).default('info'));
  start<Options>(addGlobalOptions(addArithmeticOptions(command), { gpu: 'several' }), run);
}

async function run({ args, options, terminal, signal }: Context<Options>): Promise<undefined> {
  const { host, port, apiKeyFile, modelName, maxRequests, logLevel, shutdownTimeout, page } = options;
  const { device, threads, weights, kvCache, activations, kvTokens, chatTemplate } = options;
  const { Model } = await import('../../runtime/model.ts');
  const { createServer } = await import('../../server/server.ts');
  const { readKeys } = await import('../../server/keys.ts');
  const { formatBytes } = await import('../../report/format.ts');
  const apiKeys = apiKeyFile === undefined ? undefined : readKeys(apiKeyFile);
  await using model = await Model.load(args[0]!, {
    device,
    threads,
    weights,
    kvCache,
    activations,
    kvTokens,
    chatTemplate,
    signal,
    onProgress: (done, total) => terminal.progress(done / total, `loading layer ${done} of ${total}`),
    onWarning: (message) => terminal.warn(message),
  });
  terminal.endProgress();
  const logger = logLevel === 'silent' ? false : { level: logLevel, stream: process.stderr };
  const server = await createServer(model, { modelName, apiKeys, maxRequests, page, logger });
  let address: string;
  try {
    address = await server.listen({ host, port });
  } catch (cause) {
    await server.close();
    throw new EspalierError('IO', `cannot listen on ${host}:${port}: ${(cause as Error).message}`, { cause });
  }
  const { weightBytes, formats, kvBytes } = model.info;
  const kvRoom = `${model.kv.tokens} tokens of KV cache (${formatBytes(kvBytes)})`;
  const started = { address, model: model.path, weightBytes, formats, kvBytes, kvTokens: model.kv.tokens };
  terminal.document(started);
  terminal.print(`${model.path}: ${formatBytes(weightBytes)} of weights, experts ${formats.join(', ')}; ${kvRoom}`);
  terminal.print(`listening on ${address}`);
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }));
  await server.drain(shutdownTimeout * 1000);
}
