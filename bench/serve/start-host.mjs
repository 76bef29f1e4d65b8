import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/**
 * Starts bench/serve/host.mjs; `ask` sends it a command.
 * @param {{ path: string, load: object, server?: object }} options Of Model.load and of createServer.
 */
export async function startHost(options) {
  const script = fileURLToPath(new URL('./host.mjs', import.meta.url));
  const child = fork(script, [JSON.stringify(options)], { execArgv: ['--expose-gc'] });
  const [ready] = await once(child, 'message');
  const waiting = new Map();
  child.on('message', ({ id, value, error }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(value);
    else reject(new Error(error));
  });
  let next = 0;
  return {
    ...ready,
    ask(name, args) {
      const id = next++;
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        child.send({ id, name, args });
      });
    },
    /** Sends SIGTERM; resolves with the exit status. */
    async stop() {
      child.kill('SIGTERM');
      const [status] = await once(child, 'exit');
      return status;
    },
  };
}
