/** The sound of notes, synthesised with Web Audio: no samples to download. */

const RATE = 44100, RELEASE_S = 0.25, TAIL_S = 1.2;
const BRIGHTNESS = [1, 0.62, 0.36, 0.24, 0.16, 0.1, 0.07, 0.05, 0.03, 0.02]; // of the partials

/** One note: a struck string, brighter when loud, that fades, faster when high. */
function strike(context, wave, room, { start, length, pitch, velocity }) {
  const hertz = 440 * 2 ** ((pitch - 69) / 12), loud = velocity / 127;
  const fade = 2.6 * 2 ** ((60 - pitch) / 22), end = start + length;
  const string = new OscillatorNode(context, { frequency: hertz });
  string.setPeriodicWave(wave);
  const dampen = new BiquadFilterNode(context, { type: "lowpass", Q: 0.2 });
  const open = Math.min(hertz * (2 + 7 * loud) + 400, 16000);
  dampen.frequency.setValueAtTime(open, start);
  dampen.frequency.setTargetAtTime(Math.min(hertz * 1.6 + 250, open), start, fade / 3);
  const level = new GainNode(context, { gain: 0 });
  level.gain.setValueAtTime(0, start);
  level.gain.linearRampToValueAtTime(0.16 * loud ** 1.4, start + 0.004);
  level.gain.setTargetAtTime(0.0001, start + 0.004, fade / 2);
  level.gain.setTargetAtTime(0, end, RELEASE_S / 4);
  string.connect(dampen).connect(level);
  const place = new StereoPannerNode(context, { pan: (pitch - 60) / 80 });
  level.connect(place);
  for (const output of room) place.connect(output);
  string.start(start);
  string.stop(end + RELEASE_S);
}

/** A small room: noise that fades within a second. */
function roomOf(context) {
  const response = context.createBuffer(2, RATE, RATE);
  for (const channel of [0, 1]) {
    const values = response.getChannelData(channel);
    values.forEach((_, i) => { values[i] = (Math.random() * 2 - 1) * Math.exp(-5 * i / RATE); });
  }
  return new ConvolverNode(context, { buffer: response });
}

/** A stereo buffer as a WAV of 16 bits, its loudest sample just below the limit. */
function wavOf(buffer) {
  const channels = [0, 1].map((channel) => buffer.getChannelData(channel));
  const peak = channels.reduce((most, values) =>
    values.reduce((loudest, one) => Math.max(loudest, Math.abs(one)), most), 0.001);
  const view = new DataView(new ArrayBuffer(44 + buffer.length * 4));
  const write = (at, name) => [...name].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  write(8, "WAVEfmt ");
  [[16, 16], [24, RATE], [28, RATE * 4], [40, buffer.length * 4]].forEach(([at, value]) =>
    view.setUint32(at, value, true));
  [[20, 1], [22, 2], [32, 4], [34, 16]].forEach(([at, value]) => view.setUint16(at, value, true));
  write(36, "data");
  const samples = new Int16Array(view.buffer, 44);
  channels.forEach((values, channel) => values.forEach((one, i) => {
    samples[2 * i + channel] = one / peak * 30000;
  }));
  return new Blob([view], { type: "audio/wav" });
}

/** A WAV of notes, rows of start, length, pitch and velocity in sixteenths. */
export async function soundOf(rows, tempo) {
  const notes = rows.map(([start, length, pitch, velocity]) =>
    ({ start: start * 15 / tempo, length: length * 15 / tempo, pitch, velocity }));
  const seconds = Math.max(...notes.map((note) => note.start + note.length)) + TAIL_S;
  const context = new OfflineAudioContext(2, Math.ceil(seconds * RATE), RATE);
  const wave = context.createPeriodicWave(new Float32Array(11), Float32Array.of(0, ...BRIGHTNESS));
  const room = roomOf(context), wet = new GainNode(context, { gain: 0.18 });
  room.connect(wet).connect(context.destination);
  for (const note of notes) strike(context, wave, [context.destination, room], note);
  return wavOf(await context.startRendering());
}
