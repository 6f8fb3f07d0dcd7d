// Which entity is in a picture and which is perhaps not, in the host's gallery: on the pictures side by side, and
// below the one that is chosen. The words are those of the picture's infotext, which the host hands to the page.
(function() {
    const TOLD = /(?:^|, )Decouple told: ("(?:[^"\\]|\\.)*"|[^,]*)/;

    // Of an infotext; "" where nothing is told.
    function told(infotext) {
        const found = TOLD.exec(infotext.trimEnd().split("\n").at(-1))?.[1] ?? "";
        return found.startsWith('"') ? JSON.parse(found) : found;
    }

    class Captions {
        constructor(tab) {
            this.tab = tab;
            this.gallery = gradioApp().querySelector(`#${tab}_gallery`);
            this.info = gradioApp().querySelector(`#generation_info_${tab} textarea`);
            const below = gradioApp().querySelector(`#html_info_${tab}`);
            if (!this.gallery || !this.info || !below) return;
            this.read = null; // what the host has handed over
            this.words = [];
            this.chosen = decouple.part("p", "decouple-chosen", "", {role: "status"});
            below.before(this.chosen);
            onAfterUiUpdate(() => this.look());
        }

        look() {
            if (this.info.value !== this.read) {
                this.read = this.info.value;
                try {
                    this.words = (JSON.parse(this.read).infotexts ?? []).map(told);
                } catch {
                    this.words = []; // nothing was drawn yet
                }
            }
            const small = [...this.gallery.querySelectorAll(".thumbnail-item.thumbnail-small")];
            const at = small.findIndex((one) => one.classList.contains("selected"));
            const text = at < 0 ? "" : this.words[at] ?? "";
            if (this.chosen.textContent !== text) this.chosen.textContent = text;
            this.gallery.querySelectorAll(".thumbnail-item.thumbnail-lg").forEach((one, k) => this.caption(one, this.words[k] ?? ""));
        }

        caption(thumbnail, words) {
            let own = thumbnail.querySelector(".decouple-caption");
            if (!words) return own?.remove();
            if (!own) thumbnail.append(own = decouple.part("span", "decouple-caption"));
            if (own.textContent !== words) own.textContent = words;
        }
    }

    onUiLoaded(() => decouple.TABS.forEach((tab) => new Captions(tab)));
})();
