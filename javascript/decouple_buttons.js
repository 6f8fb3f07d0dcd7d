// Buttons that tick a hidden control for one job: "Compare with the plain picture", "Draft without drawing".
(function() {
    async function press(tab, name, button, note) {
        if (button.disabled) return;
        note.textContent = decouple.busy(tab) ? decoupleSay("A picture is being drawn; press again when it is done.") : "";
        if (decouple.busy(tab)) return;
        button.disabled = true;
        try {
            await decouple.generateWith(tab, name, true);
        } finally {
            button.disabled = false;
        }
    }

    onUiLoaded(function() {
        for (const tab of decouple.TABS) {
            for (const name of ["compare", "drafts_only"]) {
                const button = decouple.find(tab, `${name}_button`);
                const note = decouple.part("p", "decouple-says", "", {role: "status"});
                button?.after(note);
                button?.addEventListener("click", () => press(tab, name, button, note));
            }
        }
    });
})();
