// The words of the prompt as chips. The server says what the words are and what they are called; the field
// "Entities" alone holds the choice, so that typing, pasting and presets show here, too.
(function() {
    const LOOK = 300; // ms; other scripts change the prompt without an event
    const PAUSE = 50; // ms after a key
    const KINDS = {
        weight: "attention weight", lora: "network, not part of the picture's words", break: "BREAK: the next chunk begins",
        and: "AND: the next part begins", comment: "comment", word: "not a word that can be drawn",
    };

    class Chips {
        constructor(tab) {
            const own = `#script_${tab}_attention_decoupling_`;
            this.find = {
                place: () => gradioApp().querySelector(`${own}tokens .decouple-chips`),
                prompt: () => gradioApp().querySelector(`#${tab}_prompt textarea`),
                field: () => gradioApp().querySelector(`${own}entities textarea, ${own}entities input`),
            };
            this.shown = null; // what the chips were asked for
            this.answer = null;
            this.asking = false;
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
            addEventListener("pointerup", (event) => this.dropped(event));
            addEventListener("pointermove", (event) => this.from !== null && this.mark(this.under(event) ?? this.from));
            addEventListener("pointercancel", () => this.mark(null));
        }

        now() {
            return {prompt: this.find.prompt()?.value ?? "", entities: this.find.field()?.value ?? ""};
        }

        // Nothing is asked while the accordion is closed, nor while an answer is on its way.
        async look() {
            const place = this.find.place();
            if (!place || place.offsetParent === null || this.asking) return;
            const now = this.now();
            if (place.firstChild && this.shown?.prompt === now.prompt && this.shown?.entities === now.entities) return;
            this.asking = true;
            const answer = await this.ask(now);
            this.asking = false;
            this.shown = now;
            if (answer.problem) {
                this.says(answer.problem);
            } else {
                this.answer = answer;
                this.draw();
            }
            this.look();
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
            if (!this.answer.entities.length) return this.answer.suggested;
            return this.answer.entities.filter((one) => one.words.length).map((one) => one.words);
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
                words.setAttribute("aria-label", "Words of the prompt: choose the entities");
                const says = this.part("p", "decouple-says");
                says.setAttribute("role", "status");
                place.replaceChildren(words, says);
                words.addEventListener("keydown", (event) => this.walk(event));
            }
            const colours = place.dataset.colours.split(" ");
            const owner = new Map();
            this.groups().forEach((group, k) => group.forEach((word) => owner.set(word, k)));
            const automatic = !this.answer.entities.length;
            words.replaceChildren(...this.answer.words.map((word, k) => {
                if (!word.selectable) {
                    const sign = this.part("span", "decouple-sign", word.text);
                    sign.title = KINDS[word.kind] ?? word.kind;
                    return sign;
                }
                const chip = this.part("button", "decouple-chip", word.text);
                const entity = owner.get(k);
                const tokens = word.tokens.map((one) => `#${one}`).join(" ");
                chip.dataset.word = k;
                chip.title = `token ${tokens || "none in this step"}; chunk ${word.chunk + 1}`
                    + (word.part ? `; AND part ${word.part + 1}` : "") + (word.weight === 1 ? "" : `; weight ${word.weight}`);
                chip.setAttribute("aria-pressed", entity !== undefined);
                if (entity !== undefined) {
                    chip.style.setProperty("--decouple-colour", colours[entity % colours.length]);
                    chip.append(this.part("sup", "", entity + 1));
                    chip.setAttribute("aria-label", `${word.text}, entity ${entity + 1}${automatic ? ", suggested" : ""}`);
                    chip.classList.toggle("decouple-suggested", automatic);
                }
                chip.addEventListener("click", (event) => this.clicked(k, event.shiftKey));
                chip.addEventListener("pointerdown", () => {
                    this.from = k;
                    this.dragged = false;
                });
                return chip;
            }));
            if (focused !== null) this.chip(focused)?.focus();
            const problems = this.answer.entities.map((one) => one.problem).filter(Boolean);
            this.says(problems.join(" ") || (automatic
                ? (owner.size ? "Found automatically; click words to choose." : "Nothing found; click words to choose.")
                : `${this.answer.entities.length} chosen: ${this.answer.field}`), !automatic);
        }

        says(text, back = false) {
            const place = this.find.place();
            let says = place.querySelector(".decouple-says");
            if (!says) {
                says = this.part("p", "decouple-says");
                says.setAttribute("role", "status");
                place.replaceChildren(says);
            }
            says.textContent = text;
            if (back) {
                const button = this.part("button", "decouple-back", "Find automatically");
                button.addEventListener("click", () => this.write(""));
                says.append(" ", button);
            }
        }

        chip(word) {
            return this.find.place().querySelector(`[data-word="${word}"]`);
        }

        walk(event) {
            const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
            if (!by || !event.target.dataset.word) return;
            const all = [...this.find.place().querySelectorAll("[data-word]")];
            all[(all.indexOf(event.target) + by + all.length) % all.length].focus();
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
                this.choose(without.length < groups.length ? without : [...groups, [word]]);
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
                return this.says("The prompt has just changed; click again.");
            }
            const lost = this.answer.entities.filter((one) => !one.words.length).map((one) => one.text);
            const answer = await this.ask({prompt: now.prompt, selected: groups});
            const problem = answer.problem ?? answer.entities.map((one) => one.problem).filter(Boolean).join(" ");
            if (problem) return this.says(problem, !!now.entities);
            await this.write(answer.field);
            if (lost.length) this.says(`Dropped, as the prompt doesn't name it: ${lost.join(", ")}`, true);
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
