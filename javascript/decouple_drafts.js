// The seeds that were drafted for a run's pictures, the best first; one that is pressed is drawn. Nothing is asked
// while the panel is closed.
(function() {
    const say = (text, values) => decoupleSay(text, values); // which another file defines

    class Drafts {
        constructor(tab) {
            this.tab = tab;
            this.asked = null; // number of the run that was asked for last
            this.run = ""; // of the one that is shown: the last that had drafts
            this.links = [];
            this.place = decouple.find(tab, "drafts_page", ".decouple-drafts");
            if (!this.place) return;
            const {part} = decouple;
            this.says = part("p", "decouple-says", "", {role: "status"});
            this.images = part("div");
            this.panel = part("details", "decouple-panel", "", {}, part("summary", "", say("Drafts")), this.says, this.images);
            this.place.replaceChildren(this.panel);
            this.panel.addEventListener("toggle", () => {
                if (!this.run) this.asked = null; // opened again after a failure
                this.look();
            });
            decouple.find(tab, "drafts_only_button")?.addEventListener("click", () => { this.panel.open = true; });
            onAfterUiUpdate(() => this.look());
        }

        tell(text) {
            if (this.says.textContent !== text) this.says.textContent = text;
        }

        async look() {
            if (!this.panel.open || !decouple.seen(this.panel)) return;
            const run = decouple.find(this.tab, "status", ".decouple-run")?.dataset.run ?? "";
            if (run === this.asked) return;
            this.asked = run;
            try {
                const found = run ? await (await decouple.ask(this.place, `drafts/${encodeURIComponent(run)}`)).json() : null;
                if (run === this.asked && found?.images.length) this.show(found);
            } catch (error) {
                if (run === this.asked && !this.run) return this.tell(error.message);
            }
            if (!this.run) this.tell(say("Shown here after a run for which “Look” drafted seeds, or the button above."));
        }

        show(found) {
            const {part} = decouple;
            this.run = found.id;
            this.links.splice(0).forEach((link) => URL.revokeObjectURL(link));
            this.tell(say("Best first, by the attention of the weakest entity. Press one to draw it alone, with its picture's prompt."));
            this.images.replaceChildren(...found.images.map((image) => {
                const title = say("Image {number}", {number: image.number + 1});
                return part("div", "", "", {role: "group", "aria-label": title},
                    ...(found.images.length > 1 ? [part("p", "decouple-moment", title)] : []),
                    part("div", "decouple-drafted", "", {}, ...image.drafts.map((draft) => this.card(image, draft))));
            }));
        }

        card(image, draft) {
            const {part} = decouple;
            const seed = image.variation ? say("variation seed {seed}", {seed: draft.seed}) : say("seed {seed}", {seed: draft.seed});
            const score = (name) => `${name} ${draft.scores[name]?.toFixed(3) ?? "–"}`;
            const scores = Object.keys(draft.scores);
            const told = part("span", "decouple-scores", "", {}, ...scores.map((name) => part(name === draft.weakest ? "strong" : "span", "", score(name))));
            const marks = [...(draft.drawn ? [say("drawn")] : []), ...(draft.seed === image.asked ? [say("asked for")] : [])];
            const label = say("Draw {seed}: number {rank} of {count}, {scores}", {
                seed, rank: draft.rank, count: image.drafts.length, scores: scores.map(score).join(", "),
            });
            const made = part("button", "decouple-draft", "", {"aria-label": [label, ...marks].join(", ")},
                part("span", "decouple-rank", `${draft.rank}`), part("span", "decouple-seed", seed), told,
                part("span", "decouple-marks", marks.join(", ")));
            if (draft.picture) this.picture(image, draft).then((link) => made.prepend(part("img", "", "", {src: link, alt: ""})), () => {});
            made.addEventListener("click", () => this.draw(image, draft, made));
            return made;
        }

        async picture(image, draft) {
            const answer = await decouple.ask(this.place, `drafts/${encodeURIComponent(this.run)}/${image.number}/${draft.seed}.jpg`);
            this.links.push(URL.createObjectURL(await answer.blob()));
            return this.links.at(-1);
        }

        async draw(image, draft, card) {
            if (decouple.busy(this.tab)) return this.tell(say("A picture is being drawn; press again when it is done."));
            try {
                await decouple.ask(this.place, `drafts/${encodeURIComponent(this.run)}`); // is it still kept?
            } catch (error) {
                return this.tell(error.message);
            }
            this.tell(say("Seed {seed} is drawn.", {seed: draft.seed}));
            for (const one of this.images.querySelectorAll("[aria-current]")) one.removeAttribute("aria-current");
            card.setAttribute("aria-current", "true");
            await decouple.generateWith(this.tab, "draw", `${this.run}/${image.number}/${draft.seed}`);
        }
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => new Drafts(tab)));
})();
