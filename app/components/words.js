// What the layer table says: numbers with units, results, losses.

// Numbers as app/tables.py writes them: three significant digits.
const three = (x) => { const digits = Math.abs(x) >= 100 ? 0 : Math.abs(x) >= 10 ? 1 : 2; return x ? x.toFixed(digits) : '0'; };
const scaled = (x, units) => { const [size, unit] = units.find(([s]) => x >= s) || units.at(-1); return `${size > 1 ? three(x / size) : Math.round(x)} ${unit}`.trim(); };
const count = (x) => scaled(x, [[1e9, 'G'], [1e6, 'M'], [1e3, 'k'], [1, '']]);
const bytes = (x) => scaled(x, [[1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB'], [1, 'B']]);
const BADGES = { peak_bytes: 'The largest sum of tensors alive at once when operators run in the file’s order, for one image. Exact in float; predicted where layers compute in int8.' };
const FIGURES = [['params', 'Parameters', count], ['macs', 'MACs', count], ['weight_bytes', 'Weights', bytes], ['peak_bytes', 'Peak memory', bytes]];

const words = (dial, value) => (dial.choices ? dial.words[value] ?? String(value) : dial.unit === '%' ? `${Math.round(100 * value)} %` : `${value} ${dial.unit}`);
const lossWords = (loss) => (loss === null ? '' : loss.points === null ? 'sensitivity by rank only' : `alone costs about ${loss.points.toFixed(1)} points (predicted)`);

const BITS = { 4: '4-bit', 8: 'int8', 16: 'float16' };
// What becomes of a layer: its width, its rank where it is split, its bits and zeros.
function result(row, cost) {
  const [into, out] = row.widths, [first, ...rest] = cost.widths, last = rest.pop(), parts = [];
  if (!cost.params && row.before.params) return 'disappears';
  if (last !== out) parts.push(`${out} → ${last}`);
  else if (first !== into && !rest.length) parts.push(`input ${into} → ${first}`);
  if (rest.length) parts.push(`rank ${rest.join(', ')}`);
  if (cost.kept === 'not split') parts.push(cost.kept);
  if (cost.bits < 32) parts.push(BITS[cost.bits]);
  if (cost.nonzero < cost.params) parts.push(`${Math.round(100 * (1 - cost.nonzero / cost.params))} % zero`);
  return parts.join(', ') || '=';
}
