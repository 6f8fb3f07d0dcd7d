// The words of the prompt as chips. The server says what the words are and what they are called; the field
// "Entities" alone holds the choice, so that typing, pasting and presets show here, too.
(function() {
    const LOOK = 300; // ms; other scripts change the prompt without an event
    const PAUSE = 50; // ms after a key
    const SOON = 500; // ms, after which a model may be loaded; each time doubled
    const SELDOM = 60000; // at most so; what others change by the API or on their page is seen by then
    const RETRY = 4000; // after an answer that was none
    const MOST_LEFT_OUT = 8; // things that are told; of each the chip tells, too
    const say = (text, values) => decoupleSay(text, values); // which another file defines
    const KINDS = {
        weight: () => say("attention weight"),
        lora: () => say("network, not part of the picture's words"),
        break: (sign, words) => {
            const next = words.find((one) => one.start >= sign.end && one.part === sign.part && one.tokens.length);
            return next?.chunk === sign.chunk ? say("BREAK: a word like others, as this model has no chunks")
                : say("BREAK: the next chunk begins");
        },
        and: () => say("AND: the next part begins"),
        comment: () => say("comment"),
        edit: () => say("prompt editing or a choice"),
        punctuation: () => say("a sign, not a word"),
        keyword: () => say("a sign of another extension, not a word"),
        word: () => say("not a word that can be drawn"),
    };

    class Chips {
        constructor(tab) {
            const own = `#script_${tab}_attention_decoupling_`;
            this.find = {
                place: () => gradioApp().querySelector(`${own}tokens .decouple-chips`),
                prompt: () => gradioApp().querySelector(`#${tab}_prompt textarea`),
                field: () => gradioApp().querySelector(`${own}entities textarea, ${own}entities input`),
                sampler: () => gradioApp().querySelector(`#${tab}_sampling input`),
                steps: () => gradioApp().querySelector(`#${tab}_steps input[type=number]`),
                checkpoint: () => gradioApp().querySelector("#setting_sd_model_checkpoint input, .model_selection input"),
            };
            this.tab = tab;
            this.shown = null; // what the chips were asked for
            this.answer = null;
            this.asking = false;
            this.wait = SOON; // until it is asked anew, as the model may be another one by then
            this.due = 0; // when that is
            this.wrong = false; // the last answer was none
            this.checkpoint = null;
            this.busy = false;
            this.last = null; // index of the word that was clicked last
            this.from = null; // and of the one where a drag began
            this.dragged = false;
            setInterval(() => this.look(), LOOK);
            for (const box of [this.find.prompt(), this.find.field()]) {
                box?.addEventListener("input", () => {
                    clearTimeout(this.timer);
                    this.timer = setTimeout(() => this.look(), PAUSE);
                });
            }
            addEventListener("focus", () => this.askAgain());
            addEventListener("pointerup", (event) => this.dropped(event));
            addEventListener("pointermove", (event) => this.from !== null && this.mark(this.under(event) ?? this.from));
            addEventListener("pointercancel", () => this.mark(null));
        }

        now() {
            const settings = {};
            for (const name of ["loss", "steps", "start", "every", "size", "rule", "stop", "gradient"]) {
                const value = decouple.value(this.tab, name);
                if (value !== "") settings[name] = value;
            }
            return {
                prompt: this.find.prompt()?.value ?? "", entities: this.find.field()?.value ?? "", settings,
                sampler: this.find.sampler()?.value ?? "", steps: Math.max(0, Math.trunc(this.find.steps()?.value ?? 0) || 0),
            };
        }

        // Nothing is asked while the accordion is closed, nor while an answer is on its way.
        async look() {
            const place = this.find.place();
            if (!place || place.offsetParent === null || this.asking) return;
            const now = this.now();
            const same = place.firstChild && JSON.stringify(this.shown) === JSON.stringify(now);
            if (same && !this.modelMayHaveChanged()) return;
            this.asking = true;
            const answer = await this.ask(now);
            this.asking = false;
            if (same || answer.problem) this.askLater(answer.problem ? RETRY : SELDOM);
            const wasWrong = this.wrong;
            this.wrong = !!answer.problem;
            this.shown = now;
            if (answer.problem) {
                this.says([answer.problem]);
            } else if (!same || wasWrong || JSON.stringify(answer) !== JSON.stringify(this.answer)) {
                this.answer = answer;
                (decouple.profiles ??= {})[this.tab] = answer.profile;
                this.draw();
            }
            this.look();
        }

        // A model is loaded while nothing on the page changes, after the page was made, after another checkpoint was
        // chosen, and in Forge with the first picture.
        modelMayHaveChanged() {
            const checkpoint = this.find.checkpoint()?.value ?? "", busy = decouple.busy(this.tab);
            if ((this.checkpoint !== null && checkpoint !== this.checkpoint) || (this.busy && !busy)) this.askAgain();
            this.checkpoint = checkpoint;
            this.busy = busy;
            return Date.now() >= this.due;
        }

        askAgain() {
            this.wait = SOON;
            this.due = Date.now() + this.wait;
        }

        askLater(most) {
            this.wait = Math.min(2 * this.wait, most);
            this.due = Date.now() + this.wait;
        }

        async ask(body) {
            try {
                const sent = await decouple.ask(this.find.place(), "tokens", {
                    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
                });
                return await sent.json();
            } catch (error) {
                return {problem: error.message};
            }
        }

        // The entities as lists of words' indexes: those of the field, or the suggested ones while it is empty.
        groups() {
            return this.shownGroups().filter((words) => words.length);
        }

        shownGroups() {
            const {entities, suggested} = this.answer;
            return entities.length ? entities.map((one) => one.words) : suggested;
        }

        // What the prompt names, too, but isn't kept apart by itself; of no interest once entities are chosen.
        leftOut() {
            return this.answer.entities.length ? [] : this.answer.left_out ?? [];
        }

        part(tag, name, text = "") {
            const made = document.createElement(tag);
            made.className = name;
            made.textContent = text;
            if (tag === "button") made.type = "button";
            return made;
        }

        draw() {
            const place = this.find.place();
            const focused = place.contains(document.activeElement) ? document.activeElement.dataset.word : null;
            let words = place.querySelector(".decouple-words");
            if (!words) {
                words = this.part("div", "decouple-words");
                words.setAttribute("role", "group");
                words.setAttribute("aria-label", say("Words of the prompt: choose the entities"));
                words.title = [
                    say("Click a word to choose it, click again to leave it out."),
                    say("Drag across words, or click with Shift, to join them into one entity."),
                    say("By keyboard: arrow keys go from word to word, Enter or Space chooses, Shift and Enter join all from the word chosen last."),
                ].join("\n");
                words.setAttribute("aria-description", words.title);
                const says = this.part("p", "decouple-says");
                says.setAttribute("role", "status");
                place.replaceChildren(words, says);
                words.addEventListener("keydown", (event) => this.walk(event));
                words.addEventListener("focusin", (event) => this.reach(event.target.dataset.word));
            }
            const owner = new Map();
            this.shownGroups().forEach((group, k) => group.forEach((word) => owner.set(word, k)));
            const automatic = !this.answer.entities.length;
            const leftOut = this.leftOut();
            words.replaceChildren(...this.together(this.answer.words.map((word, k) => {
                if (!word.selectable) {
                    const sign = this.part("span", "decouple-sign", word.text);
                    sign.title = (KINDS[word.kind] ?? KINDS.word)(word, this.answer.words);
                    return sign;
                }
                // The joiner keeps the host's localization from taking a word of the prompt for one of its own.
                const chip = this.part("button", "decouple-chip", `${word.text}\u2060`);
                const entity = owner.get(k);
                const tokens = word.tokens.map((one) => `#${one}`).join(" ");
                chip.dataset.word = k;
                chip.title = [
                    tokens ? say("token {tokens}", {tokens}) : say("no token in this step"),
                    say("chunk {number}", {number: word.chunk + 1}),
                    word.part && say("AND part {number}", {number: word.part + 1}),
                    word.weight !== 1 && say("weight {weight}", {weight: word.weight}),
                ].filter(Boolean).join("; ");
                chip.setAttribute("aria-pressed", entity !== undefined);
                const out = leftOut.find((one) => one.words.includes(k));
                if (out) {
                    chip.classList.add("decouple-left-out");
                    chip.title = `${say("left out: {why}", {why: out.why})}; ${chip.title}`;
                    chip.setAttribute("aria-label", say("{word}, left out: {why}", {word: word.text, why: out.why}));
                }
                if (entity !== undefined) {
                    chip.style.setProperty("--decouple-colour", this.answer.colours[entity]);
                    chip.append(this.part("sup", "", entity + 1));
                    const told = {word: word.text, number: entity + 1};
                    chip.setAttribute("aria-label", automatic ? say("{word}, entity {number}, suggested", told)
                        : say("{word}, entity {number}", told));
                    chip.classList.toggle("decouple-suggested", automatic);
                }
                chip.addEventListener("click", (event) => this.clicked(k, event.shiftKey));
                chip.addEventListener("pointerdown", () => {
                    this.from = k;
                    this.dragged = false;
                });
                return chip;
            })));
            this.reach(focused);
            if (focused !== null) this.chip(focused)?.focus();
            const problems = [...(this.answer.warnings ?? []), ...this.answer.entities.map((one) => one.problem).filter(Boolean)];
            const first = leftOut.slice(0, MOST_LEFT_OUT).map((one) => `${one.text} (${one.why})`).join(", ");
            const things = leftOut.length <= MOST_LEFT_OUT ? first
                : say("{things} and {number} more", {things: first, number: leftOut.length - MOST_LEFT_OUT});
            const told = things && say("Left out: {things}; a click keeps one apart, too.", {things});
            this.says(problems.length ? problems : (automatic
                ? [owner.size ? say("Found automatically. Click words to change that; drag across words to join them.")
                    : say("Nothing found; click words to choose."), told].filter(Boolean).join(" ")
                : say("{number} chosen: {names}", {number: this.answer.entities.length, names: this.answer.field})), !automatic);
        }

        // Elements of words and signs, so that no line begins with a sign that closes, or ends with one that opens.
        together(parts) {
            const lines = [];
            let opened = false;
            for (const one of parts) {
                const sign = one.classList.contains("decouple-sign") ? one.textContent.trim() : "";
                const short = sign.length < 8;
                if (lines.length && short && (opened || /^[,.;:!?)\]}，、；。：]/.test(sign))) {
                    if (!lines.at(-1).classList.contains("decouple-together")) {
                        const together = this.part("span", "decouple-together");
                        together.append(lines.pop());
                        lines.push(together);
                    }
                    lines.at(-1).append(one);
                } else {
                    lines.push(one);
                }
                opened = short && /[(\[{]$/.test(sign);
            }
            return lines;
        }

        // A list is one of problems, a text no problem. What the server says begins with the field's name, which the
        // person looks at.
        says(told, back = false) {
            const place = this.find.place();
            let says = place.querySelector(".decouple-says");
            if (!says) {
                says = this.part("p", "decouple-says");
                says.setAttribute("role", "status");
                place.replaceChildren(says);
            }
            const wrong = Array.isArray(told);
            says.classList.toggle("decouple-problem", wrong);
            const sentence = (one) => one.replace(/^entities: /, "").replace(/^[a-z](?!\w*:)/, (letter) => letter.toUpperCase());
            says.textContent = wrong ? told.map(sentence).join("\n") : told;
            if (back) {
                const button = this.part("button", "decouple-back", say("Find automatically"));
                button.addEventListener("click", () => this.write(""));
                says.append(" ", button);
            }
        }

        chip(word) {
            return this.find.place().querySelector(`[data-word="${word}"]`);
        }

        // Of all words the tabulator stops at one; the arrow keys go on from there.
        reach(word) {
            const chosen = (word !== null && this.chip(word)) || this.find.place().querySelector("[data-word]");
            for (const chip of this.find.place().querySelectorAll("[data-word]")) chip.tabIndex = chip === chosen ? 0 : -1;
        }

        walk(event) {
            if (!event.target.dataset.word) return;
            if (event.key === "Enter" && event.shiftKey) {
                event.preventDefault();
                return this.clicked(+event.target.dataset.word, true);
            }
            const all = [...this.find.place().querySelectorAll("[data-word]")];
            const here = all.indexOf(event.target);
            const to = {ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: -1};
            if (!(event.key in to)) return;
            all.at(to[event.key] % all.length).focus();
            event.preventDefault();
        }

        mark(to) {
            for (const chip of this.find.place()?.querySelectorAll("[data-word]") ?? []) {
                chip.classList.toggle("decouple-marked", to !== null && this.between(this.from, to).includes(+chip.dataset.word));
            }
            if (to === null) this.from = null;
        }

        between(a, b) {
            const low = Math.min(a, b), high = Math.max(a, b);
            return this.answer.words.map((_, k) => k).filter((k) => k >= low && k <= high && this.answer.words[k].selectable);
        }

        under(event) {
            const chip = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-word]");
            return chip && this.find.place()?.contains(chip) ? +chip.dataset.word : null;
        }

        dropped(event) {
            if (this.from === null) return;
            const from = this.from, to = this.under(event) ?? from;
            this.mark(null);
            if (to === from) return;
            this.dragged = true; // a click may follow on the chip that was pressed
            setTimeout(() => this.dragged = false);
            this.choose(this.joined(from, to));
        }

        clicked(word, shift) {
            if (this.dragged) return;
            if (shift && this.last !== null && this.last !== word && this.last < this.answer.words.length) {
                this.choose(this.joined(this.last, word));
            } else {
                const groups = this.groups();
                const without = groups.filter((group) => !group.includes(word));
                const own = this.leftOut().find((one) => one.words.includes(word))?.words ?? [word];
                this.choose(without.length < groups.length ? without : [...groups, own]);
            }
            this.last = word;
        }

        joined(a, b) {
            const run = this.between(a, b);
            return [...this.groups().filter((group) => !group.some((word) => run.includes(word))), run];
        }

        async choose(groups) {
            const now = this.now();
            if (now.prompt !== this.shown.prompt || now.entities !== this.shown.entities) {
                return this.says([say("The prompt has just changed; click again.")]);
            }
            const lost = this.answer.entities.filter((one) => !one.words.length).map((one) => one.text);
            const answer = await this.ask({prompt: now.prompt, selected: groups});
            const problems = answer.problem ? [answer.problem] : answer.entities.map((one) => one.problem).filter(Boolean);
            if (problems.length) return this.says(problems, !!now.entities);
            await this.write(answer.field);
            if (lost.length) this.says(say("Dropped, as the prompt doesn't name it: {names}", {names: lost.join(", ")}), true);
        }

        write(text) {
            const field = this.find.field();
            field.value = text;
            field.dispatchEvent(new Event("input", {bubbles: true}));
            return this.look();
        }
    }

    onUiLoaded(function() {
        for (const tab of ["txt2img", "img2img"]) new Chips(tab);
    });
})();
