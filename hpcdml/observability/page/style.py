"""The style of the page: light and dark, wide and narrow."""

from __future__ import annotations

# Drawn lines stand out by 3 to 1, text by 4.5 to 1 or more, against both backgrounds.
STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --card: #f5f6f8; --ink: #1c2127; --soft: #565f6b; --line: #d5d9df; --focus: #0b57d0;
  --compute: #2f78b7; --data: #b9770e; --idle: #c9433f; --serve: #7a5aa6; --evaluate: #2a8a57;
  --v0: #2a8a57; --v1: #a4568f; --v2: #8a7a12;
  --r0: #2f78b7; --r1: #c9433f; --r2: #2a8a57; --r3: #8f5bb5; --r4: #a66a00; --r5: #0e8585; --r6: #b8417e;
  --r7: #6c7016;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14171b; --card: #1e2329; --ink: #e6e9ed; --soft: #a5aeb9; --line: #39414b; --focus: #8ab4f8;
    --compute: #5aa3e0; --data: #e2a640; --idle: #f0716b; --serve: #ab8fdb; --evaluate: #55bd87;
    --v0: #55bd87; --v1: #d689c3; --v2: #c5b343;
    --r0: #5aa3e0; --r1: #f0716b; --r2: #55bd87; --r3: #bd90e3; --r4: #e2a640; --r5: #3fbcbc; --r6: #ec7fb4;
    --r7: #b5b956;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 76rem; background: var(--back);
  color: var(--ink); font: 1rem/1.5 system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 48rem; }
p.soft { color: var(--soft); font-size: .92rem; }
a { color: inherit; }
a.skip { position: absolute; left: -100vw; }
a.skip:focus { left: .5rem; background: var(--back); padding: .3rem .6rem; z-index: 1; }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .6rem 0; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
.card { background: var(--card); border-radius: .5rem; padding: .7rem .8rem; min-width: 0; }
.verdict { border-left: .4rem solid var(--compute); margin: 0 0 1rem; }
.verdict p { margin: .2rem 0; }
code { font: .95em ui-monospace, "Liberation Mono", "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 11px system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; }
svg text.soft { fill: var(--soft); }
svg .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
svg .rule { stroke: var(--line); stroke-width: 1; fill: none; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .ideal { stroke-dasharray: 5 3; }
.scroll { overflow-x: auto; }
.scroll > svg { min-width: 46rem; }
ul.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .2rem 0 .4rem; padding: 0;
  font-size: .88rem; }
ul.key svg { display: inline-block; width: 1.5rem; height: .8rem; vertical-align: -.05rem; margin-right: .35rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .18rem .9rem .18rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; min-width: 9rem; overflow-wrap: break-word; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.differs { background: color-mix(in srgb, var(--data) 22%, transparent); }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .92rem; }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
legend { padding: 0; font-size: .92rem; color: var(--soft); }
fieldset > input { margin: 0 .3rem 0 0; accent-color: var(--compute); }
fieldset > label { margin-right: 1.1rem; font-size: .92rem; }
.views { margin-top: .5rem; }
.views > * { display: none; }
fieldset > input:nth-of-type(1):checked ~ .views > :nth-child(1),
fieldset > input:nth-of-type(2):checked ~ .views > :nth-child(2),
fieldset > input:nth-of-type(3):checked ~ .views > :nth-child(3),
fieldset > input:nth-of-type(4):checked ~ .views > :nth-child(4) { display: block; }
fieldset > input:nth-of-type(1):checked ~ .views > .grid:nth-child(1),
fieldset > input:nth-of-type(2):checked ~ .views > .grid:nth-child(2) { display: grid; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media print { .views > * { display: block; } nav, fieldset > input, fieldset > label { display: none; } }
"""
