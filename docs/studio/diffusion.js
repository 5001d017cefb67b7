/**
 * From noise to a piano roll: the twin of `utils/diffusion.py`, each function of the one named.
 * The same seed gives the same music in both: random numbers are those of `torch.Generator`.
 */

import { ONSET, SIZE, WIDTH, fromPlanes, toPlanes, withoutGaps, withoutStraySustains }
  from "./pianoroll.js";

const SETTLED = -1; // log signal-to-noise ratio from which on the number of notes is decided
const GUIDED = -4; // log SNR from which on guidance and self-conditioning apply
const LEAST = 0.5, BAR = 16; // of the density aimed at, in each bar; columns of a bar
const LOGIT_LIMIT = 30;

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const logit = (p) => Math.log(p / (1 - p));

/** The Mersenne Twister (Matsumoto & Nishimura 1998), read as PyTorch reads it on a CPU. */
export class Random {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i += 1) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
    this.next = 624;
  }

  twist() {
    const { state } = this;
    for (let i = 0; i < 624; i += 1) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** 32 random bits. */
  bits() {
    if (this.next === 624) this.twist();
    let bits = this.state[this.next];
    this.next += 1;
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    bits ^= bits >>> 18;
    return bits >>> 0;
  }

  /** `torch.randint`, below `count`. */
  below(count) {
    return this.bits() % count;
  }

  /** `torch.rand` */
  uniform(count) {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i += 1) values[i] = (this.bits() & 0xffffff) / 0x1000000;
    return values;
  }

  /** `torch.randn`, of a multiple of 16 numbers: Box and Muller's pairs, eight numbers apart. */
  normal(count) {
    const values = this.uniform(count);
    for (let begin = 0; begin < count; begin += 16) {
      for (let i = begin; i < begin + 8; i += 1) {
        const radius = Math.sqrt(-2 * Math.log(1 - values[i])), angle = 2 * Math.PI * values[i + 8];
        values[i] = radius * Math.cos(angle);
        values[i + 8] = radius * Math.sin(angle);
      }
    }
    return values;
  }
}

/** alpha_bar of each noise step. `cosine_schedule` */
export function cosineSchedule(steps, shift) {
  const f = (t) => Math.cos((t / steps + 0.008) / 1.008 * Math.PI / 2) ** 2;
  let product = 1;
  return Array.from({ length: steps }, (_, t) => {
    product *= 1 - Math.min(1 - f(t + 1) / f(t), 0.999);
    return sigmoid(logit(product) + shift);
  });
}

/** `spaced_timesteps` */
const spacedTimesteps = (steps, count) =>
  Array.from({ length: count }, (_, i) => Math.round(steps - i * steps / count) - 1);

/** By how much to move one plane's logits so that their mean probability is `mean`. `with_mean` */
function shiftToMean(logits, mean, where) {
  let low = -LOGIT_LIMIT, high = LOGIT_LIMIT;
  const counted = where ? logits.filter((_, i) => where[i]) : logits;
  const odds = Float64Array.from(counted, (one) => Math.exp(-one)); // against
  for (let i = 0; i < 16; i += 1) {
    const middle = (low + high) / 2, factor = Math.exp(-middle);
    let sum = 0;
    for (const one of odds) sum += 1 / (1 + one * factor); // sigmoid(logit + middle)
    if (sum / odds.length > mean) high = middle;
    else low = middle;
  }
  return (low + high) / 2;
}

/** Logits moved away from the per-pixel logits, as many notes as before. `guided` */
function guided(logits, pixel_logits, guidance) {
  if (guidance === 1) return logits;
  const moved = logits.map((one, i) => pixel_logits[i] + guidance * (one - pixel_logits[i]));
  for (const plane of [0, 1]) {
    const before = logits.subarray(plane * SIZE, (plane + 1) * SIZE);
    const after = moved.subarray(plane * SIZE, (plane + 1) * SIZE);
    const mean = before.reduce((sum, one) => sum + sigmoid(one), 0) / SIZE;
    const by = shiftToMean(after, mean);
    after.forEach((one, i) => { after[i] = one + by; });
  }
  return moved;
}

/** How many onsets are expected where `where` is 1. */
const expected = (logits, where) => where.reduce((sum, inside, i) =>
  sum + (inside ? sigmoid(logits[SIZE + i]) : 0), 0);

/** Moves both planes by one number where `where` is 1, to `onsets` onsets. `aim_at_onsets` */
function aimAtOnsets(logits, onsets, where) {
  const size = where.reduce((sum, one) => sum + one, 0), aim = Math.min(onsets, size / 2);
  if (Math.abs(expected(logits, where) - aim) <= 0.5) return;
  const by = shiftToMean(logits.subarray(SIZE), aim / size, where);
  logits.forEach((one, i) => { if (where[i % SIZE]) logits[i] = one + by; });
}

/** Moves those bars that would fall silent. `fill_silent_bars` */
function fillSilentBars(logits, onsets, where) {
  const share = onsets / where.reduce((sum, one) => sum + one, 0);
  for (let bar = 0; bar < WIDTH / BAR; bar += 1) {
    const inside = where.map((one, i) => (Math.floor(i % WIDTH / BAR) === bar ? one : 0));
    const least = LEAST * share * inside.reduce((sum, one) => sum + one, 0);
    if (expected(logits, inside) < least) aimAtOnsets(logits, least, inside);
  }
}

/** The network's logits with all conditions. `NotePredictor.conditioned` */
function conditioned({ logits, pixel_logits }, logSnr,
  { guidance, mask, silent, pitchWeights, onsets, means }) {
  const moved = logSnr > GUIDED ? guided(logits, pixel_logits, guidance) : logits;
  for (const row of silent) { // `silent_rows`
    for (let i = row * WIDTH; i < (row + 1) * WIDTH; i += 1) {
      if (mask[i]) moved[i] = moved[SIZE + i] = -LOGIT_LIMIT;
    }
  }
  if (pitchWeights) { // `weigh_pitches`
    moved.forEach((one, i) => {
      if (mask[i % SIZE]) moved[i] = one + Math.log(Math.max(pitchWeights[i % SIZE], 1e-30));
    });
  }
  if (onsets > 0 && logSnr < SETTLED) {
    aimAtOnsets(moved, onsets, mask);
    fillSilentBars(moved, onsets, mask);
  } else if (means && logSnr < SETTLED) { // `with_mean`
    for (const plane of [0, 1]) {
      const part = moved.subarray(plane * SIZE, (plane + 1) * SIZE);
      const by = shiftToMean(part, means[plane]);
      part.forEach((one, i) => { part[i] = one + by; });
    }
  }
  return moved;
}

/** Velocities stretched about their mean to the standard deviation `spread`. `with_spread` */
function withSpread(velocity, onset, spread) {
  const total = onset.reduce((sum, one) => sum + one, 0);
  const mean = (of) => onset.reduce((sum, one, i) => sum + one * of(velocity[i]), 0) / total;
  const middle = mean((one) => one), found = Math.sqrt(mean((one) => (one - middle) ** 2));
  const factor = Math.min(spread / Math.max(found, 1e-6), 4);
  return velocity.map((one) => middle + (one - middle) * factor);
}

/** Planes drawn from their probabilities by the same uniform numbers. `draw_notes` */
function drawNotes(probabilities, velocity, uniform) {
  const planes = new Float32Array(2 * SIZE);
  for (let i = 0; i < SIZE; i += 1) {
    const active = probabilities[i], onset = probabilities[SIZE + i];
    const number = uniform ? uniform[i] : 0.5; // without any, the likelier value is taken
    planes[i] = number < Math.max(active, onset) ? 1 : 0;
    planes[SIZE + i] = number < onset
      ? Math.min(Math.max(velocity[i], (ONSET + 1) / 255), 1) : 0;
  }
  return planes;
}

/** One step from noise level a_t to a_s, in place. `ddpm_step` */
function ddpmStep(x_t, x_0, a_t, a_s, noise) {
  const kept = a_t / a_s;
  const ofX_0 = Math.sqrt(a_s) * (1 - kept) / (1 - a_t);
  const ofX_t = Math.sqrt(kept) * (1 - a_s) / (1 - a_t);
  const ofNoise = Math.sqrt((1 - a_s) / (1 - a_t) * (1 - kept));
  for (let i = 0; i < x_t.length; i += 1) {
    x_t[i] = ofX_0 * x_0[i] + ofX_t * x_t[i] + ofNoise * noise[i];
  }
}

/**
 * A new roll: where `mask` is 0, `roll` stays. `generate` and `sample`, with "ddpm" and `exact`.
 *
 * `network(x_t, log_snr, x_0_hat, known)` answers { logits, velocity, pixel_logits }; `config` is
 * model.json's `network`. `pitchWeights` holds 128 × 128 numbers or is null. `watch(step, roll)`
 * sees each step's prediction and may throw to stop.
 */
export async function generate(network, config, { samplingSteps, seed, roll, mask, strength = 1,
  pitchWeights = null, onsets = 0, watch = async () => {} }) {
  const random = new Random(seed);
  const alphaBar = cosineSchedule(config.noise_steps, config.noise_shift);
  const standardise = (planes) => planes.map((one, i) => {
    const plane = i < SIZE ? 0 : 1;
    return (one - config.mean[plane]) / config.std[plane];
  });
  const skip = samplingSteps - Math.ceil(strength * samplingSteps);
  const times = spacedTimesteps(config.noise_steps, samplingSteps).slice(skip);
  if (!times.length) return roll;
  const clean = standardise(toPlanes(roll)), known = Float32Array.from(mask, (one) => 1 - one);
  const a = [...times.map((t) => alphaBar[t]), 1];
  const counts = config.active_counts; // `aim_at_training_images`
  const free = !known.includes(1) && !onsets && !skip && counts.length;
  const image = free ? random.below(counts.length) : 0;
  const means = free ? [counts[image] / SIZE, config.onset_counts[image] / SIZE] : null;
  const spread = free && config.velocity_spreads.length
    ? config.velocity_spreads[image] / 255 : null;
  const x_t = random.normal(2 * SIZE);
  if (skip) { // `q_sample`
    x_t.forEach((eps, i) => { x_t[i] = Math.sqrt(a[0]) * clean[i] + Math.sqrt(1 - a[0]) * eps; });
  }
  const nothing = new Float32Array(2 * SIZE);
  let x_0_hat = nothing, planes = null;
  for (const step of times.keys()) {
    x_t.forEach((_, i) => { if (known[i % SIZE]) x_t[i] = clean[i]; });
    const logSnr = logit(a[step]);
    const prediction = await network(x_t, logSnr, logSnr > GUIDED ? x_0_hat : nothing, known);
    const logits = conditioned(prediction, logSnr,
      { guidance: config.guidance, mask, silent: config.silent_rows, pitchWeights, onsets, means });
    x_0_hat = logits.map(sigmoid);
    const isLast = step === times.length - 1;
    const velocity = spread === null ? prediction.velocity
      : withSpread(prediction.velocity, x_0_hat.subarray(SIZE), spread);
    planes = drawNotes(x_0_hat, velocity, isLast ? null : random.uniform(SIZE));
    await watch(step, fromPlanes(planes));
    if (!isLast) ddpmStep(x_t, standardise(planes), a[step], a[step + 1], random.normal(2 * SIZE));
  }
  const found = fromPlanes(planes).map((level, i) => (mask[i] ? level : roll[i]));
  return withoutStraySustains(withoutGaps(found, mask), mask);
}
