"""One output while it is made: lock, journal, growing files, commit and publication, on disk or in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.output.config_diff import (
        changed_input_error,
        changed_parts_error,
        changed_settings_error,
        is_only_more_lenient,
        source_error,
    )
    from tokmill.output.directory import Output, discard_append, open_output
    from tokmill.output.disk_space import (
        DiskNeed,
        disk_need,
        is_complete,
        is_made,
        item_bytes,
        most_tokens,
        rewriting_need,
    )
    from tokmill.output.growing_file import GrowingFile
    from tokmill.output.journal import Header, read_journal
    from tokmill.output.parts import (
        MOST_NAMED,
        divided,
        incomplete,
        join,
        load_plan,
        n_parts,
        part_content,
        part_contents,
        part_directory,
        part_url,
        parts_url,
        skipped_lists,
    )
    from tokmill.output.prefix import Claim, Prefix, reading_errors
    from tokmill.output.protected_paths import why_protected
    from tokmill.output.remote_parts import RemoteParts, missing_parts, part_name
    from tokmill.output.run_history import RunHistoryRecorder, load_history
    from tokmill.output.staged import (
        Here,
        Staged,
        destination,
        is_complete_at,
        output_of,
        stage_of,
    )
    from tokmill.output.state_dir import (
        STATE_NAME,
        acquire_lock,
        growing_files,
        growing_path,
        is_begun,
        parts_of,
        plan_of,
        release_lock,
        staged_bytes,
        state_of,
    )
    from tokmill.output.superseded import (
        discard_unfinished,
        is_append_to,
        is_current,
        located,
        open_file,
        pending_append,
        pending_manifest,
        read_consistent,
        remove_state,
        replaced_error,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "config_diff": [
            "changed_input_error",
            "changed_parts_error",
            "changed_settings_error",
            "is_only_more_lenient",
            "source_error",
        ],
        "directory": ["Output", "discard_append", "open_output"],
        "disk_space": ["DiskNeed", "disk_need", "is_complete", "is_made", "item_bytes", "most_tokens", "rewriting_need"],
        "growing_file": ["GrowingFile"],
        "journal": ["Header", "read_journal"],
        "parts": [
            "MOST_NAMED",
            "divided",
            "incomplete",
            "join",
            "load_plan",
            "n_parts",
            "part_content",
            "part_contents",
            "part_directory",
            "part_url",
            "parts_url",
            "skipped_lists",
        ],
        "prefix": ["Claim", "Prefix", "reading_errors"],
        "protected_paths": ["why_protected"],
        "remote_parts": ["RemoteParts", "missing_parts", "part_name"],
        "run_history": ["RunHistoryRecorder", "load_history"],
        "staged": ["Here", "Staged", "destination", "is_complete_at", "output_of", "stage_of"],
        "state_dir": [
            "STATE_NAME",
            "acquire_lock",
            "is_begun",
            "release_lock",
            "growing_files",
            "growing_path",
            "parts_of",
            "plan_of",
            "staged_bytes",
            "state_of",
        ],
        "superseded": [
            "discard_unfinished",
            "is_append_to",
            "is_current",
            "located",
            "open_file",
            "pending_append",
            "pending_manifest",
            "remove_state",
            "replaced_error",
            "read_consistent",
        ],
    },
)
