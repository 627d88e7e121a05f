// core/predict.py, core/network.py and core/ranks.py again, in the browser, so that totals follow a slider while it is dragged.
// tests/browser/test_layer_table.py holds the two equal over random recipes.
// Only `costs` is meant for others; names are those of the Python.
const dialFor = (layers, name, otherwise) => {
  for (let n = name; n; n = n.slice(0, Math.max(0, n.lastIndexOf('.')))) if (n in layers) return layers[n];
  return otherwise;
};
const dialOf = (step, dial, name) => dialFor(step.layers, name, step.options[dial]);

// Python rounds halves to the even neighbour.
const round = (x) => { const low = Math.floor(x), rest = x - low; return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low; };
const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);

const keptChannels = (channels, ratio, multiple) => {
  if (ratio <= 0 || channels <= multiple) return channels;
  return Math.min(channels, Math.max(multiple, Math.floor((channels * (1 - ratio)) / multiple + 0.5) * multiple));
};

// A group without which a residual branch does nothing takes it along.
const widthAfter = (group, channels, ratio, multiple) => (ratio >= 1 && group.branch.length ? 0 : keptChannels(channels, ratio, multiple));

function costs(profile, steps) {
  const net = {
    parts: new Map(profile.layers.map((layer) => [layer.name, [layer]])),
    groups: new Map(profile.groups.map((group) => [group.name, group])),
    width: Object.fromEntries(profile.groups.map((group) => [group.name, group.channels])),
    zeros: {}, bits: {}, kept: {}, gone: new Set(), integer: new Set(), peakKnown: true, exact: true,
  };
  for (const step of steps) if (step.enabled && STEPS[step.technique]) STEPS[step.technique](net, step);
  const layers = Object.fromEntries([...net.parts].map(([name, parts]) => [name, layerCost(net, name, parts)]));
  const total = (key) => sum(Object.values(layers), (layer) => layer[key]);
  return { params: total('params'), macs: total('macs'), weight_bytes: total('weight_bytes'), nonzero: total('nonzero'), peak_bytes: peakAfter(profile.operators, net), exact: net.exact, peak_exact: net.exact && !net.integer.size, layers };
}

function layerCost(net, name, parts) {
  const total = (of) => sum(parts, (part) => of(net, part)), params = total(paramsOf);
  const widths = [channelsOf(net, parts[0])[0], ...parts.map((part) => channelsOf(net, part)[1])];
  const bits = parts.map((part) => net.bits[part.name] ?? 32);
  return { params, macs: total(macsOf), weight_bytes: total(bytesOf), nonzero: params - total(zerosOf), widths, bits: Math.min(...bits), kept: net.kept[name] ?? '' };
}

const layersOf = (net) => [...net.parts.values()].flat();
const tunable = (layer) => !plain(layer) && layer.kind !== 'shortcut';
const plain = (layer) => layer.kind === 'norm' || layer.kind === 'other';

function channelsOf(net, layer) {
  if (net.gone.has(layer.name)) return [0, 0];
  const into = layer.inputs.length ? sum(layer.inputs, ([group, repeat]) => net.width[group] * repeat) : layer.in_channels;
  if (layer.group in net.width) return [into, net.width[layer.group]];
  return [into, ['norm', 'depthwise'].includes(layer.kind) && layer.inputs.length ? into : layer.out_channels];
}

function weightsOf(net, layer) {
  if (plain(layer) || net.gone.has(layer.name)) return 0;
  const [into, out] = channelsOf(net, layer), groups = layer.kind === 'depthwise' ? out : layer.groups;
  if (layer.kind === 'shortcut') return into === layer.in_channels && out === layer.out_channels ? 0 : into * out; // a copy costs nothing
  return Math.floor(into / groups) * out * layer.kernel[0] * layer.kernel[1];
}

function paramsOf(net, layer) {
  if (net.gone.has(layer.name)) return 0;
  const out = channelsOf(net, layer)[1];
  if (!plain(layer)) return weightsOf(net, layer) + (layer.bias ? out : 0);
  const follows = layer.group in net.width || layer.kind === 'norm';
  return follows && layer.out_channels ? Math.floor((layer.params * out) / layer.out_channels) : layer.params;
}

function macsOf(net, layer) {
  if (net.gone.has(layer.name)) return 0;
  if (plain(layer)) return layer.macs;
  if (layer.kind === 'shortcut') return weightsOf(net, layer) * layer.output_shape[1] * layer.output_shape[2];
  return Math.floor((layer.macs * weightsOf(net, layer)) / (layer.params - (layer.bias ? layer.out_channels : 0)));
}

function zerosOf(net, layer) {
  const weights = weightsOf(net, layer), [zeros, of] = net.zeros[layer.name] ?? [0, weights];
  if (weights === of) return zeros;
  net.exact = false;
  return round((zeros * weights) / of);
}

function bytesOf(net, layer) {
  const bits = net.bits[layer.name] ?? 32, params = paramsOf(net, layer), weights = weightsOf(net, layer);
  if (bits <= 8 && weights) {
    const packed = bits === 4 || bits === 8 ? Math.ceil((weights * bits) / 8) : bits * Math.ceil(weights / 8);
    return packed + 4 * (params - weights) + 4 * channelsOf(net, layer)[1];
  }
  return bits === 16 ? 2 * params : 4 * params;
}

function pruneChannels(net, step) {
  const { ratio, criterion, multiple, scope } = step.options;
  const normed = new Set(layersOf(net).filter((layer) => layer.kind === 'norm').flatMap((layer) => layer.inputs.map(([group]) => group)));
  for (const [name, group] of net.groups) {
    const ratio = dialOf(step, 'ratio', name);
    if (group.blocked && ratio > 0) { group.layers.forEach((layer) => { net.kept[layer] = 'blocked'; }); continue; }
    const width = widthAfter(group, net.width[name], ratio, multiple);
    if (!width || criterion !== 'bn_scale' || normed.has(name)) net.width[name] = width;
    if (!net.width[name]) group.branch.flatMap((layer) => net.parts.get(layer) ?? []).forEach((part) => net.gone.add(part.name));
  }
  net.exact &&= scope === 'layer' || ratio === 0;
}

function pruneWeights(net, step) {
  for (const layer of layersOf(net)) {
    const weights = weightsOf(net, layer), sparsity = dialOf(step, 'sparsity', layer.name);
    if (!weights || sparsity <= 0 || layer.kind === 'shortcut') continue;
    let zeros = round(sparsity * weights);
    if (step.options.pattern !== 'any') {
      const [keep, block] = step.options.pattern.split(':').map(Number);
      const across = layer.kind === 'depthwise' ? 1 : Math.floor(channelsOf(net, layer)[0] / layer.groups);
      zeros = layer.kind !== 'conv_transpose' && across % block === 0 ? Math.floor(weights / block) * (block - keep) : 0;
    }
    net.zeros[layer.name] = [Math.max(zeros, zerosOf(net, layer)), weights];
  }
}

function factorize(net, step) {
  net.exact &&= step.options.ranks !== 'evbmf'; // its ranks are those of the weights
  const last = layersOf(net).filter(tunable).at(-1); // it gives the answer
  for (const [origin, parts] of [...net.parts]) net.parts.set(origin, parts.flatMap((layer) => split(net, step, origin, layer, layer === last)));
}

function split(net, step, origin, layer, last) {
  const own = dialFor(step.layers, layer.name), rank = own ?? step.options.rank;
  if (rank >= 1 || !tunable(layer) || net.gone.has(layer.name)) return [layer];
  if (last && own === undefined && layer.kind === 'linear') { net.kept[origin] = 'not split'; return [layer]; }
  const shape = shapeOf(layer, ...channelsOf(net, layer)), pieces = pays(shape, step.options.method, rank);
  if (!pieces) { net.kept[origin] = 'not split'; return [layer]; }
  let inputs = layer.inputs;
  return pieces.map((piece, i) => {
    const name = `${layer.name}.${i}`, last = i === pieces.length - 1;
    const group = last ? layer.group : piece.kind === 'depthwise' ? inputs[0][0] : name;
    if (group === name) {
      net.groups.set(name, { name, channels: piece.out, layers: [name], branch: [], blocked: false });
      net.width[name] = piece.out;
    }
    const part = {
      ...layer, name, kind: piece.kind, groups: piece.groups, params: shapeParams(piece), macs: shapeMacs(piece), in_channels: piece.into, out_channels: piece.out, kernel: piece.kernel, bias: piece.bias,
      group, inputs, input_shape: [piece.into, ...piece.before], output_shape: [piece.out, ...piece.after],
    };
    inputs = [[group, 1]];
    return part;
  });
}

function shapeOf(layer, into, out) {
  const { kind, bias } = layer;
  if (kind === 'linear') {
    const pixels = Math.floor(layer.macs / (layer.params - (bias ? layer.out_channels : 0)));
    return { kind, into, out, kernel: [1, 1], groups: 1, before: [1, 1], after: [pixels, 1], bias };
  }
  const groups = kind === 'depthwise' ? out : layer.groups;
  return { kind, into, out, kernel: layer.kernel, groups, before: layer.input_shape.slice(-2), after: layer.output_shape.slice(-2), bias };
}

const shapeWeights = (s) => Math.floor(s.into / s.groups) * s.out * s.kernel[0] * s.kernel[1];
const shapeParams = (s) => shapeWeights(s) + (s.bias ? s.out : 0);
const shapeMacs = (s) => shapeWeights(s) * s.after[0] * s.after[1];
const keep = (rank, full) => Math.min(full, Math.max(1, round(rank * full)));

// The factors, or null where they would not be smaller and cheaper.
function pays(shape, method, rank) {
  if (!['conv', 'linear'].includes(shape.kind) || shape.groups > 1) return null;
  const parts = factors(shape, method, rank);
  return sum(parts, shapeParams) < shapeParams(shape) && sum(parts, shapeMacs) < shapeMacs(shape) ? parts : null;
}

function factors(shape, method, rank) {
  const { into, out, kernel: [kh, kw], before, after, bias } = shape;
  const piece = (from, to, kernel, old, now, last) => ({ kind: shape.kind, into: from, out: to, kernel, groups: 1, before: old, after: now, bias: last && bias });
  if (shape.kind === 'linear') {
    const r = keep(rank, Math.min(into, out));
    return [piece(into, r, [1, 1], [1, 1], after, false), piece(r, out, [1, 1], [1, 1], after, true)];
  }
  if (method === 'spatial_svd') {
    const r = keep(rank, Math.min(into * kh, out * kw)), middle = [after[0], before[1]];
    return [piece(into, r, [kh, 1], before, middle, false), piece(r, out, [1, kw], middle, after, true)];
  }
  if (method === 'cp') {
    const r = keep(rank, Math.min(into, out) * kh * kw), middle = [after[0], before[1]];
    const alone = (kernel, old, now) => ({ ...piece(r, r, kernel, old, now, false), kind: 'depthwise', groups: r });
    return [piece(into, r, [1, 1], before, before, false), alone([kh, 1], before, middle), alone([1, kw], middle, after), piece(r, out, [1, 1], after, after, true)];
  }
  const rIn = keep(rank, Math.min(into, out * kh * kw)), rOut = keep(rank, Math.min(out, into * kh * kw));
  return [piece(into, rIn, [1, 1], before, before, false), piece(rIn, rOut, [kh, kw], before, after, false), piece(rOut, out, [1, 1], after, after, true)];
}

function quantize(net, step) {
  const { mode, agreement } = step.options;
  for (const layer of layersOf(net)) {
    if (dialOf(step, 'bits', layer.name) !== 8) continue;
    net.bits[layer.name] = mode === 'float16' ? 16 : 8;
    net.peakKnown &&= mode === 'int8';
    net.integer.add(layer.name);
  }
  net.exact &&= !agreement || mode !== 'int8'; // which layers stay in float, only a run knows
}

function quantizeWeights(net, step) {
  const fits = (layer) => ['conv', 'depthwise', 'linear', 'shortcut'].includes(layer.kind);
  for (const layer of layersOf(net).filter(fits)) net.bits[layer.name] = dialOf(step, 'bits', layer.name);
}

const STEPS = { prune_channels: pruneChannels, prune_weights: pruneWeights, factorize, quantize, quantize_weights: quantizeWeights };
