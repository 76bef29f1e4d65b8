// Prunes in a process of its own, which a test can kill: node prune-child.mjs DIST OPTIONS. Calibration ids are a path.
// Prints a line for each thing it begins, so that the test knows how far it is.
const [dist, options] = process.argv.slice(2);
const { prune } = await import(dist);
console.log('start');
const { resumedLayers, alreadyFinished } = await prune(JSON.parse(options));
console.log(JSON.stringify({ resumedLayers, alreadyFinished }));
