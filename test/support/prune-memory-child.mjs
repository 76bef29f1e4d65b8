// Prunes and prints the peak resident bytes of the process: node prune-memory-child.mjs DIST OPTIONS, options as JSON; the
// calibration is a number of random tokens.
const [dist, json] = process.argv.slice(2);
const { prune } = await import(dist);
const { tokens, ...options } = JSON.parse(json);
await prune({ ...options, calibration: Uint32Array.from({ length: tokens }, () => Math.floor(Math.random() * 512)) });
console.log(process.resourceUsage().maxRSS * 1024);
