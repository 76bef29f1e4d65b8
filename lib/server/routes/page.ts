/** GET /: a page to chat with the model and to watch the server, and the files that it consists of. */
import { readFileSync } from 'node:fs';
import { extname, join } from 'node:path';
import { packageRoot } from '../../native.ts';
import type { App } from '../service.ts';

const folder = join(packageRoot, 'lib', 'server', 'page');

const files: Readonly<Record<string, string>> = {
  '/': 'index.html',
  ...Object.fromEntries(
    ['style.css', 'page.js', 'api.js', 'chat.js', 'load.js'].map((name) => [`/page/${name}`, name]),
  ),
};

const types: Readonly<Record<string, string>> = { '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript' };

/** Nothing comes from elsewhere, and nobody frames it. */
const headers = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-cache',
};

/** What opens without a key: whoever has one types it into the page. */
export const pagePaths: readonly string[] = Object.keys(files);

export function pageRoutes(app: App): void {
  for (const [url, name] of Object.entries(files)) {
    const content = readFileSync(join(folder, name));
    const type = `${types[extname(name)]}; charset=utf-8`;
    app.get(url, { schema: { hide: true } }, (_, reply) => reply.headers(headers).type(type).send(content));
  }
}
