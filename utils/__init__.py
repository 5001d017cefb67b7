"""The code of the notebooks that is not in their cells, with the notebooks that explain it.

What the lesson is about, in the order to read it:

    pianoroll   MIDI ↔ piano roll ↔ PNG: the one format that everything passes      01, 05
    diffusion   noise schedule, forward process, samplers, conditions               02, 08
    unet        the denoiser, and its file on disk                                  02
    metrics     how musical a set of piano rolls is, and how far from another set   07
    harmony     chords and scales as tables of pitch weights                        08
    inpaint     new bars for a piece of any length, around what is kept             08

What surrounds it:

    corpus      a folder of MIDI becomes images, which are loaded or streamed       01
    sources     collections of MIDI by name: download, check, unpack                01
    bars        where the bars of a piece begin                                     01
    training    checkpoint, resume, log, a time budget in steps                     02, 03
    show        look at piano rolls and hear them; the gallery                      all
    audio       MIDI → WAV                                                          06
    edit        new notes in some bars of a MIDI file, and the rest as it was       08
    canvas      the piano roll to draw on, beside canvas.js                         09
    files       errors of one line, files written whole, parameters of a type       all
"""
