"""One output while it is made: lock, journal, growing files, commit and publication, on disk or in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokmill.core.lazy import lazy_names

if TYPE_CHECKING:
    from tokmill.output.config_diff import (
        changed_input_error,
        changed_settings_error,
        source_error,
    )
    from tokmill.output.directory import GrowingFile, Output, open_output
    from tokmill.output.disk_space import (
        DiskNeed,
        arranging_bytes,
        check_n_files,
        disk_need,
        most_tokens,
        n_shards,
        rewriting_need,
        written_bytes,
    )
    from tokmill.output.journal import Header, read_journal
    from tokmill.output.opening import (
        change_at,
        destination,
        drop_tokenized,
        earlier_arrangement,
        finish_derived,
        is_complete,
        is_complete_at,
        is_made,
        refuse_tokenized,
        tokenized_before,
        tokenized_of,
    )
    from tokmill.output.parts import (
        DirectoryParts,
        PartsStore,
        files_of_whole,
        in_parts,
        n_parts,
        part_content,
        part_contents,
        part_url,
        skipped_lists,
    )
    from tokmill.output.place import Place, output_directory, output_of, stage_of
    from tokmill.output.prefix import Prefix, reading_errors
    from tokmill.output.remote_parts import RemoteParts
    from tokmill.output.run_history import RunHistoryRecorder, load_history
    from tokmill.output.state_dir import (
        acquire_lock,
        check_size,
        growing_path,
        is_begun,
        left_behind,
        plan_of,
        refuse_linked_sides,
        refuse_strangers,
        release_lock,
        remove_growing,
        state_of,
        waiting_bytes,
        why_protected,
    )
    from tokmill.output.superseded import (
        discard_append,
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
        sync_directories,
    )

__getattr__, __all__ = lazy_names(__name__)
